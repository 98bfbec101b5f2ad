"""Where a branch stands, and what it reads there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GRIDS = (4, 2, 1)
MOST_WEIGHTS = 100_000
"""Of a classifier on pooled features; see `finest_grid`."""


@dataclass(frozen=True)
class FeatureShape:
    """A tensor an exit reads: its shape for one image, batch axis included; its channel axis."""

    shape: tuple[int, ...]
    channel_axis: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def numel(self) -> int:
        """Values for one image."""
        return math.prod(self.shape[1:])

    @property
    def is_map(self) -> bool:
        """Whether it has two axes of space."""
        return len(self.shape) == 4

    @property
    def size(self) -> tuple[int, ...]:
        """Lengths of all axes but batch and channels."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (0, self.channel_axis))


@dataclass(frozen=True)
class ExitSite:
    """Where a branch stands.

    Attributes:
        features: the tensors it reads.
        num_classes: number of classes.
        position: how many exits come before.
    """

    features: tuple[FeatureShape, ...]
    num_classes: int
    position: int = 0


def finest_grid(site: ExitSite) -> int:
    """The finest of 4 x 4, 2 x 2 and 1 x 1 cells that keeps a classifier within 100,000 weights.

    Few classes afford a finer look, 1000 classes get the global average.
    """
    smallest = min((min(f.size) for f in site.features if f.is_map), default=1)
    return next(
        (
            grid
            for grid in GRIDS
            if grid <= smallest
            and pooled_width(site.features, grid) * site.num_classes <= MOST_WEIGHTS
        ),
        1,
    )


def pooled_width(features: Sequence[FeatureShape], grid: int) -> int:
    """Values that `pool` leaves of one image."""
    return sum(f.channels * (grid * grid if f.is_map else 1) for f in features)


def pool(features: Sequence[Tensor], shapes: Sequence[FeatureShape], grid: int) -> Tensor:
    """Averages: of maps over the cells of a grid, of tokens over all; joined to (B, width)."""
    pooled = []
    for feature, spec in zip(features, shapes, strict=True):
        rank = len(spec.shape)
        if spec.is_map and grid > 1:
            maps = feature if spec.channel_axis == 1 else feature.movedim(spec.channel_axis, 1)
            pooled.append(F.adaptive_avg_pool2d(maps, grid).flatten(1))
        else:
            axes = [a for a in range(1, rank) if a != spec.channel_axis]
            pooled.append(feature.mean(axes) if axes else feature)
    return join(pooled)


def join(vectors: Sequence[Tensor]) -> Tensor:
    """(B, n) each, side by side."""
    return vectors[0] if len(vectors) == 1 else torch.cat(list(vectors), 1)
