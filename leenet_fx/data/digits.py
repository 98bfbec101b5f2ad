"""scikit-learn's handwritten digits on a larger canvas, each with a known degree of difficulty.

As they come (8x8, centred) the 1,797 images are too easy to tell easy from hard: nearly all would
leave at the first exit. So each is placed on a 32x32 canvas by a transformation whose strength, the
difficulty, is drawn uniformly from [0, 1]: shift, rotation, change of scale, noise, and pieces of
other digits beside it. A difficulty of 0 is the plain digit in the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from leenet_fx.errors import DependencyError

CANVAS = 32
CLASSES = 10
SPLITS = {"train": 800, "gates": 250, "validate": 250, "test": 497}
"""Digits of each split; each of the 1,797 is in one split only."""


@dataclass(frozen=True)
class Digits:
    """One split.

    Attributes:
        images: (n, 1, 32, 32), values around 0..1.
        labels: (n,) digits.
        difficulty: (n,) in [0, 1].
    """

    images: Tensor
    labels: Tensor
    difficulty: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def loader(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of (image, label); shuffled where a generator is given."""
        return DataLoader(
            TensorDataset(self.images, self.labels),
            batch_size=batch_size,
            shuffle=generator is not None,
            generator=generator,
        )


def load_digits(seed: int = 0, *, views: int = 8) -> dict[str, Digits]:
    """The digits placed on canvases, in the splits "train", "gates", "validate" and "test".

    Which image is in which split does not depend on the seed; where each is placed does.

    Args:
        seed: for every placement.
        views: placements of each digit that something is fitted to; of the digits that only
            measure there are at most four.

    Raises:
        DependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DependencyError(
            "The digits need scikit-learn: pip install 'leenet-fx[demo]'."
        ) from error
    raw, target = load(return_X_y=True)
    glyphs = torch.tensor(raw, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(target, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    splits: dict[str, Digits] = {}
    start = 0
    for name, size in SPLITS.items():
        chosen = order[start : start + size]
        start += size
        chosen = chosen.repeat(views if name in ("train", "gates") else min(views, 4))
        difficulty = torch.rand(len(chosen), generator=generator)
        # Pieces of other digits come from the same split, so no test image is seen in training.
        images = place(glyphs[chosen], difficulty, generator)
        splits[name] = Digits(images, labels[chosen], difficulty)
    return splits


def place(glyphs: Tensor, difficulty: Tensor, generator: torch.Generator) -> Tensor:
    """Draws each glyph on a canvas, as hard to read as its difficulty says.

    Args:
        glyphs: (n, 1, 8, 8) in 0..1; also what distracting pieces are cut from.
        difficulty: (n,) in [0, 1].
        generator: draws the placements.

    Returns:
        (n, 1, 32, 32).
    """
    n = len(glyphs)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle = difficulty * uniform(-1, 1) * math.radians(35)
    scale = 0.62 * torch.exp(difficulty * uniform(-1, 1) * 0.5)
    centre = torch.stack([difficulty * uniform(-1, 1) * 0.22 for _ in range(2)], 1)
    canvas = _draw(glyphs, angle, scale, centre)
    for strength in (0.8, 0.5):
        others = glyphs[torch.randint(n, (n,), generator=generator)]
        side = uniform(0, 2 * math.pi)
        beside = centre + 0.95 * torch.stack([side.cos(), side.sin()], 1)
        pieces = _draw(others, uniform(-1, 1), 0.45 * torch.ones(n), beside)
        shown = (difficulty * strength).reshape(-1, 1, 1, 1)
        canvas = torch.maximum(canvas, pieces * shown)
    noise = torch.randn(canvas.shape, generator=generator)
    return canvas + 0.2 * difficulty.reshape(-1, 1, 1, 1) * noise


def _draw(glyphs: Tensor, angle: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
    """Glyphs rotated by `angle`, `scale` of the canvas wide, at `centre` (canvas is −1..1)."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    x, y = centre.unbind(1)
    theta = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [len(glyphs), 1, CANVAS, CANVAS], align_corners=False)
    return F.grid_sample(glyphs, grid, align_corners=False)
