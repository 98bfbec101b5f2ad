"""scikit-learn's handwritten digits on a larger canvas, each with a known degree of difficulty.

The 1,797 images (8x8, centred) are too easy: nearly all would exit at the first exit. So each is
placed on a 32x32 canvas by a transformation whose strength, the difficulty, is drawn uniformly from
[0, 1]: translation, rotation, scaling, noise, and parts of other digits next to it. A difficulty of
0 is the untransformed digit in the centre.
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
SPLITS = {"train": 800, "calibration": 250, "val": 250, "test": 497}
"""Number of digits in each split; each of the 1,797 is in one split only."""

MEASURED_VIEWS = 4
"""Largest number of placements of a digit that is only measured on."""


@dataclass(frozen=True)
class Digits:
    """Images, labels and difficulties of one split.

    Attributes:
        images: (n, 1, 32, 32), values in about 0..1.
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
        """Return a loader of batches (images (B, 1, 32, 32), labels (B,)).

        Args:
            batch_size: number of images per batch.
            generator: draws the order; None keeps the order.
        """
        return DataLoader(
            TensorDataset(self.images, self.labels),
            batch_size=batch_size,
            shuffle=generator is not None,
            generator=generator,
        )


def load_digits(seed: int = 0, *, views: int = 8) -> dict[str, Digits]:
    """Load the digits, placed on canvases, in the splits "train", "calibration", "val" and "test".

    The placements depend on the seed; the images of each split do not.

    Args:
        seed: random seed of the placements.
        views: number of placements of each digit in "train" and "calibration"; the digits of "val"
            and "test" have at most four.

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
        fitted = name in ("train", "calibration")
        chosen = chosen.repeat(views if fitted else min(views, MEASURED_VIEWS))
        difficulty = torch.rand(len(chosen), generator=generator)
        # Parts of other digits are from the same split, so that no test image is used in training.
        images = place(glyphs[chosen], difficulty, generator)
        splits[name] = Digits(images, labels[chosen], difficulty)
    return splits


def place(glyphs: Tensor, difficulty: Tensor, generator: torch.Generator) -> Tensor:
    """Place each glyph on a canvas, transformed in proportion to its difficulty.

    Args:
        glyphs: (n, 1, 8, 8), values in 0..1; parts of them are also added next to other glyphs.
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
    """Draw glyphs on canvases.

    Args:
        glyphs: (n, 1, 8, 8).
        angle: (n,) rotation in radians.
        scale: (n,) width of a glyph relative to the canvas.
        centre: (n, 2) position, in −1..1.
    """
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
