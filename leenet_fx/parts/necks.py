"""Necks: from the features that an exit reads to one vector per sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.batch_norm import BatchNorm1d, BatchNorm2d
from leenet_fx.parts.exit_site import (
    ExitSite,
    average_pool,
    concatenate,
    finest_grid,
    max_pool,
    pooled_width,
)
from leenet_fx.parts.standardize import Standardize
from leenet_fx.parts.whole_calls import checked_length

CONV_GAIN = 16.0
"""Factor on the output of convolutional necks, relative to that of pooling necks. The larger it is,
the faster the head trains, and the convolutions with it. Accuracy of two heads on ResNet-20 after
five epochs of CIFAR-10: 70.8 and 79.9 % for 0.2, 76.4 and 81.7 % for 4, 77.3 and 82.2 % for 8, 77.0
and 83.2 % for 16."""


class Neck(nn.Module, ABC):
    """Base of necks: `pool`, which uses no parameter, then `forward`.

    Attributes:
        site: features and position that the neck is built for.
        width: n, the length of the output vector.
        carries_state: whether `forward` reads a `state` in place of the pooled features.
    """

    carries_state = False

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.width = width

    @property
    def pooling(self) -> str:
        """Description of `pool`; necks with equal descriptions pool equally."""
        return "none"

    @abstractmethod
    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Reduce the features to what `forward` reads, without parameters.

        Feature caches store the result.

        Args:
            features: tensors of the site's shapes, with a batch of B.

        Returns:
            Tensors (B, …).
        """

    def state(self, *pooled: Tensor, previous_state: Tensor | None = None) -> Tensor:
        """Compute the state (B, …) that `forward` and the next exit read, if `carries_state`.

        Args:
            pooled: output of `pool`.
            previous_state: state of the exit before; None at the first exit.
        """
        raise NotImplementedError(f"{type(self).__name__} carries no state.")

    @abstractmethod
    def forward(self, *pooled: Tensor) -> Tensor:
        """Map the output of `pool`, or the state if `carries_state`, to vectors (B, n).

        Their standard deviation should be about n^−½, or `CONV_GAIN` times that behind
        convolutions: the heads' learning rates assume it.
        """

    def fit_statistics(self, *pooled: Tensor) -> None:
        """Fit input statistics to training images; a neck that is fitted keeps its statistics.

        Args:
            pooled: output of `pool` for the training images, each (samples, …).
        """


NeckFactory: TypeAlias = Callable[..., Neck]
"""(site, **options) → neck."""


class StandardizedNeck(Neck):
    """Base of necks whose pooled features are standardized."""

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.inputs = Standardize(width, power=0.5)

    def forward(self, *pooled: Tensor) -> Tensor:
        standardized: Tensor = self.inputs(*pooled)
        return standardized

    def fit_statistics(self, *pooled: Tensor) -> None:
        if not self.inputs.is_fitted:
            self.inputs.fit_statistics(*pooled)


class PoolNeck(StandardizedNeck):
    """Average pooling (EENets' `pool`).

    Maps are pooled to a grid of 4 x 4, 2 x 2 or 1 x 1 cells, the finest that keeps a linear
    classifier within 100,000 weights. Tokens are averaged. Several features are pooled separately
    and concatenated.

    Args:
        site: features and position.
        grid: cells along each side; None selects the finest.

    Raises:
        InputError: `grid` is not a positive integer.
    """

    def __init__(self, site: ExitSite, grid: int | None = None) -> None:
        grid = _checked_grid(site, grid)
        super().__init__(site, pooled_width(site.features, grid))
        self.grid = grid

    @property
    def pooling(self) -> str:
        return f"average pooling, grid {self.grid}"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (average_pool(features, self.site.features, self.grid),)


class MixPoolNeck(StandardizedNeck):
    """α·max + (1−α)·average over the cells of a grid, with a learned α (Shallow-Deep Networks).

    Args:
        site: features and position; the features must be maps (B, C, H, W).
        grid: cells along each side; None selects the finest, as for `PoolNeck`.

    Raises:
        InputError: `grid` is not a positive integer, or the features are no maps.
    """

    def __init__(self, site: ExitSite, grid: int | None = None) -> None:
        grid = _checked_grid(site, grid)
        _check_maps(site, "mixpool")
        super().__init__(site, pooled_width(site.features, grid))
        self.grid = grid
        self.alpha = nn.Parameter(torch.tensor(0.5))

    @property
    def pooling(self) -> str:
        return f"maximum and average pooling, grid {self.grid}"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            pooled(features, self.site.features, self.grid) for pooled in (max_pool, average_pool)
        )

    def forward(self, *pooled: Tensor) -> Tensor:
        standardized: Tensor = self.inputs(self._mixed(*pooled))
        return standardized

    def fit_statistics(self, *pooled: Tensor) -> None:
        super().fit_statistics(self._mixed(*pooled).detach())

    def _mixed(self, largest: Tensor, average: Tensor) -> Tensor:
        return self.alpha * largest + (1 - self.alpha) * average


class FlattenNeck(StandardizedNeck):
    """All values of the features, flattened and concatenated (LEENet; EENets' `plain`)."""

    def __init__(self, site: ExitSite) -> None:
        super().__init__(site, sum(f.numel for f in site.features))

    @property
    def pooling(self) -> str:
        return "flatten"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        flat = concatenate([feature.flatten(1) for feature in features])
        return (checked_length(flat, self.width, "A 'flatten'", "values"),)


class NormPoolNeck(Neck):
    """BatchNorm over the channels, then average pooling (EENets' `bnpool`).

    Args:
        site: features and position.
        grid: cells along each side; None selects the finest, as for `PoolNeck`.

    Raises:
        InputError: `grid` is not a positive integer.
    """

    def __init__(self, site: ExitSite, grid: int | None = None) -> None:
        grid = _checked_grid(site, grid)
        super().__init__(site, pooled_width(site.features, grid))
        self.grid = grid
        self.norms = nn.ModuleList(BatchNorm1d(f.channels) for f in site.features)

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        normalized = []
        for feature, spec, norm in zip(pooled, self.site.features, self.norms, strict=True):
            channels_second = feature.movedim(spec.channel_axis, 1)
            flat = norm(channels_second.flatten(2) if len(spec.shape) > 2 else channels_second)
            normalized.append(flat.view(channels_second.shape).movedim(1, spec.channel_axis))
        averages: Tensor = average_pool(normalized, self.site.features, self.grid)
        return averages / math.sqrt(self.width)


class ConvNeck(Neck):
    """Blocks of 3x3 convolution, BatchNorm and ReLU, then average pooling (PTEEnet's ConvX).

    The paper does not give the channels. Here stride-2 convolutions that double the channels halve
    the map until its longest side is at most `size`; `blocks` more convolutions keep both; the last
    map is pooled to 2 x 2 cells. `ConvXNeck` is as published.

    Args:
        site: features and position; the features must be maps (B, C, H, W) of one size.
        blocks: X, the number of convolutions after the strided ones.
        size: longest side of the map that these convolutions read.
        channels: maximum number of channels; None allows four times those of the features.

    Raises:
        InputError: an option is not an integer in its range, or the features are no such maps.
    """

    grid: ClassVar[int] = 2

    def __init__(
        self, site: ExitSite, blocks: int = 1, size: int = 8, channels: int | None = None
    ) -> None:
        _check_conv_options(blocks, size, channels)
        _check_maps(site, "conv")
        width = sum(f.channels for f in site.features)
        max_channels = 4 * width if channels is None else channels
        longest = max(site.features[0].size)
        layers: list[nn.Module] = []
        while longest > size:
            longest = (longest + 1) // 2
            layers += _convolution(width, min(2 * width, max_channels), stride=2)
            width = min(2 * width, max_channels)
        for _ in range(blocks):
            layers += _convolution(width, width, stride=1)
        super().__init__(site, width * self.grid**2)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(self.grid), nn.Flatten())

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        shapes = self.site.features
        maps = [f.movedim(s.channel_axis, 1) for f, s in zip(pooled, shapes, strict=True)]
        outputs: Tensor = self.layers(concatenate(maps))
        return CONV_GAIN * outputs / math.sqrt(self.width)


class ConvXNeck(ConvNeck):
    """PTEEnet's ConvX: convolutions at full resolution, BatchNorm, ReLU, then the global average.

    As in the authors' code, each of X convolutions 3x3 keeps channels and resolution, so with two
    of them a branch costs as much as a residual block.

    Args:
        site: features and position; the features must be maps (B, C, H, W) of one size.
        blocks: X.

    Raises:
        InputError: `blocks` is not an integer ≥ 0, or the features are no such maps.
    """

    grid: ClassVar[int] = 1

    def __init__(self, site: ExitSite, blocks: int = 2) -> None:
        super().__init__(site, blocks, size=max(max(f.shape) for f in site.features))


class StridedConvNeck(Neck):
    """A 3x3 convolution with stride 2, BatchNorm and ReLU, then mixed pooling (ZTW's heads).

    BatchNorm is not in the authors' heads; without it SGD at a neck's learning rate diverges. The
    pooling is α·max + (1−α)·average over at most 4 x 4 cells, with a learned α.

    Args:
        site: features and position; the features must be maps (B, C, H, W) of one size.

    Raises:
        InputError: the features are no such maps.
    """

    def __init__(self, site: ExitSite) -> None:
        _check_maps(site, "strided")
        channels = sum(f.channels for f in site.features)
        grid = min(4, min((side + 1) // 2 for side in site.features[0].size))
        super().__init__(site, channels * grid**2)
        self.grid = grid
        self.layers = nn.Sequential(*_convolution(channels, channels, stride=2))
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        shapes = self.site.features
        maps = [f.movedim(s.channel_axis, 1) for f, s in zip(pooled, shapes, strict=True)]
        outputs = self.layers(concatenate(maps))
        largest = F.adaptive_max_pool2d(outputs, self.grid)
        average = F.adaptive_avg_pool2d(outputs, self.grid)
        mixed: Tensor = (self.alpha * largest + (1 - self.alpha) * average).flatten(1)
        return CONV_GAIN * mixed / math.sqrt(self.width)


def _check_maps(site: ExitSite, branch: str) -> None:
    """Raise InputError unless the features are maps of one size."""
    if not all(f.is_map for f in site.features) or len({f.size for f in site.features}) > 1:
        shapes = [f.shape for f in site.features]
        raise InputError(
            f"A '{branch}' branch reads maps (B, C, H, W) of one size, got {shapes}; 'pool' reads "
            "any features."
        )


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [conv, BatchNorm2d(outputs), nn.ReLU()]


def _check_conv_options(blocks: int, size: int, channels: int | None) -> None:
    for name, value in (("blocks", blocks), ("size", size), ("channels", channels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{name} of a 'conv' branch must be an integer, got {value!r}.")
    if blocks < 0 or size < 1 or (channels is not None and channels < 1):
        raise InputError(
            f"A 'conv' branch needs blocks ≥ 0, size ≥ 1, channels ≥ 1, got {blocks}, {size}, "
            f"{channels}."
        )


def _checked_grid(site: ExitSite, grid: int | None) -> int:
    if grid is None:
        return finest_grid(site)
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise InputError(f"grid must be a positive integer, got {grid!r}.")
    return grid
