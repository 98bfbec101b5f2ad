"""Neck that pools by learned prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import (
    ExitSite,
    FeatureShape,
    average_pool,
    concatenate,
    finest_grid,
    pooled_width,
)
from leenet_fx.parts.necks import StandardizedNeck
from leenet_fx.parts.side import as_map, resize, state_size

SHARPNESS = 10.0
"""Initial factor of the similarities, which lie in ±1, before their softmax over cells."""


class PrototypePool(nn.Module):
    """Averages over cells, each weighted by similarity to a prototype.

    Args:
        count: number of prototypes.
        channels: of the cells.

    Attributes:
        prototypes: μ (count, channels).
        sharpness: τ.
    """

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(count, channels))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def forward(self, cells: Tensor) -> Tensor:
        """Map cells (B, C, H, W) to (B, count · C)."""
        flat = cells.flatten(2)
        similarity = F.normalize(self.prototypes, dim=1) @ F.normalize(flat, dim=1)
        weights = (self.sharpness * similarity).softmax(2)
        averages: Tensor = (weights @ flat.transpose(1, 2)).flatten(1)
        return averages


class PrototypeNeck(StandardizedNeck):
    """Averages weighted by similarity to prototypes, beside plain averages (CalexNet).

    Features are averaged to at most `size` x `size` cells. Prototype k weighs the cells by
    softmax(τ·cos(x, μₖ)), where x is the vector of channels of a cell, and μₖ and τ are learned;
    the weighted averages follow the averages over the grid of branch "pool". The paper's details
    (Aperstein & Apartsin 2026) were not available.

    Tokens (B, T, C) are cells in a row, at most `size`² of them.

    Args:
        site: features and position.
        prototypes: number of prototypes, for each feature.
        size: cells along each side.

    Raises:
        InputError: an option is not a positive integer.
    """

    def __init__(self, site: ExitSite, prototypes: int = 4, size: int = 8) -> None:
        for name, value in (("prototypes", prototypes), ("size", size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{name} of a 'prototype' branch must be a positive integer, got {value!r}."
                )
        sizes = [state_size(feature, size) for feature in site.features]
        shapes = tuple(
            FeatureShape((1, feature.channels, *cells), 1)
            for feature, cells in zip(site.features, sizes, strict=True)
        )
        grid = finest_grid(ExitSite(shapes, site.num_classes))
        channels = [feature.channels for feature in site.features]
        super().__init__(site, pooled_width(shapes, grid) + prototypes * sum(channels))
        self.sizes, self.grid = sizes, grid
        self._shapes = shapes
        self.pools = nn.ModuleList(PrototypePool(prototypes, count) for count in channels)

    @property
    def pooling(self) -> str:
        return f"cells, {self.sizes}"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            resize(as_map(feature, spec), size)
            for feature, spec, size in zip(features, self.site.features, self.sizes, strict=True)
        )

    def forward(self, *pooled: Tensor) -> Tensor:
        standardized: Tensor = self.inputs(self._averages(*pooled))
        return standardized

    def fit_statistics(self, *pooled: Tensor) -> None:
        super().fit_statistics(self._averages(*pooled).detach())

    def _averages(self, *pooled: Tensor) -> Tensor:
        parts = [average_pool(pooled, self._shapes, self.grid)]
        parts += [pool(cells) for pool, cells in zip(self.pools, pooled, strict=True)]
        return concatenate(parts)
