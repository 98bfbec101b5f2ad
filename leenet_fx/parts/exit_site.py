"""The features and the position that a branch is built for, and pooling of such features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GRIDS = (4, 2, 1)
"""Cells along each side of a pooling grid, finest first."""

MAX_CLASSIFIER_WEIGHTS = 100_000
"""Largest number of weights of a linear classifier on pooled features; see `finest_grid`."""


@dataclass(frozen=True)
class FeatureShape:
    """Shape of a feature tensor that an exit reads.

    Attributes:
        shape: for a batch of one image, batch axis first.
        channel_axis: index of the channel axis.
        grid: of tokens (B, T, C), height and width of the map whose cells are the last of them;
            None if they come from no map.
    """

    shape: tuple[int, ...]
    channel_axis: int
    grid: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_axis]

    @property
    def numel(self) -> int:
        """Number of values per image."""
        return math.prod(self.shape[1:])

    @property
    def is_map(self) -> bool:
        """Whether the tensor has two spatial axes."""
        return len(self.shape) == 4

    @property
    def size(self) -> tuple[int, ...]:
        """Lengths of all axes but batch and channels."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in (0, self.channel_axis))


@dataclass(frozen=True)
class ExitSite:
    """Description of the place in the network that a branch is built for.

    Attributes:
        features: shapes of the tensors that the branch reads.
        num_classes: number of classes.
        position: number of earlier exits.
        share: FLOPs of the backbone up to here, relative to all.
    """

    features: tuple[FeatureShape, ...]
    num_classes: int
    position: int = 0
    share: float = 0.0


def finest_grid(site: ExitSite) -> int:
    """Return the finest pooling grid that keeps a linear classifier within 100,000 weights.

    The grid is 4 x 4, 2 x 2 or 1 x 1 cells: fewer classes allow a finer grid, 1000 classes get the
    global average.

    Returns:
        Cells along each side.
    """
    smallest = min((min(f.size) for f in site.features if f.is_map), default=1)
    return next(
        (
            grid
            for grid in GRIDS
            if grid <= smallest
            and pooled_width(site.features, grid) * site.num_classes <= MAX_CLASSIFIER_WEIGHTS
        ),
        1,
    )


def pooled_width(features: Sequence[FeatureShape], grid: int) -> int:
    """Return the number of values per image that `average_pool` produces."""
    return sum(f.channels * (grid * grid if f.is_map else 1) for f in features)


def average_pool(features: Sequence[Tensor], shapes: Sequence[FeatureShape], grid: int) -> Tensor:
    """Average maps over the cells of a grid and tokens over all positions, and concatenate.

    Args:
        features: tensors of these shapes, with a batch of B.
        shapes: one per feature.
        grid: cells along each side.

    Returns:
        (B, width), with width as `pooled_width` computes it.
    """
    pooled = []
    for feature, spec in zip(features, shapes, strict=True):
        rank = len(spec.shape)
        if spec.is_map and grid > 1:
            maps = feature if spec.channel_axis == 1 else feature.movedim(spec.channel_axis, 1)
            pooled.append(F.adaptive_avg_pool2d(maps, grid).flatten(1))
        else:
            axes = [a for a in range(1, rank) if a != spec.channel_axis]
            pooled.append(feature.mean(axes) if axes else feature)
    return concatenate(pooled)


def max_pool(features: Sequence[Tensor], shapes: Sequence[FeatureShape], grid: int) -> Tensor:
    """Return the maxima of maps over the cells of a grid, concatenated.

    Args:
        features: maps of these shapes, with a batch of B.
        shapes: one per feature.
        grid: cells along each side.

    Returns:
        (B, width), with width as `pooled_width` computes it.
    """
    maps = [f.movedim(spec.channel_axis, 1) for f, spec in zip(features, shapes, strict=True)]
    return concatenate([F.adaptive_max_pool2d(m, grid).flatten(1) for m in maps])


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors along axis 1; a single tensor is returned as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)
