"""Bodies: from the features an exit reads to one vector a sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite, finest_grid, join, pool, pooled_width
from leenet_fx.parts.standardize import Standardize

GAIN = 16.0
"""Spread of what convolutions say, over that of what is only pooled: by so much faster a head
learns, and the convolutions with it. Two heads on ResNet-20 after five epochs of CIFAR-10: 70.8 and
79.9 % right for 0.2, 76.4 and 81.7 % for 4, 77.3 and 82.2 % for 8, 77.0 and 83.2 % for 16."""


class Neck(nn.Module, ABC):
    """reduce, which uses no parameter, then forward.

    Attributes:
        width: n, the length of the vector.
    """

    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__()
        self.site = site
        self.width = width

    @property
    def pooling(self) -> str:
        """What `reduce` does, in words."""
        return "nothing"

    @abstractmethod
    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        """What the body needs of the features; training on a frozen backbone keeps this."""

    @abstractmethod
    def forward(self, *pooled: Tensor) -> Tensor:
        """What `reduce` left → (B, n), of spread about n^−½, or `GAIN` times that of convolutions:
        rates of heads count on it."""

    def measure(self, *pooled: Tensor) -> None:
        """Scales by what `reduce` leaves of training images; one that was scaled stays so."""


NeckFactory: TypeAlias = Callable[..., Neck]


class _Scaled(Neck):
    def __init__(self, site: ExitSite, width: int) -> None:
        super().__init__(site, width)
        self.inputs = Standardize(width, power=0.5)

    def forward(self, *pooled: Tensor) -> Tensor:
        scaled: Tensor = self.inputs(*pooled)
        return scaled

    def measure(self, *pooled: Tensor) -> None:
        if not self.inputs.measured:
            self.inputs.measure(*pooled)


class Pool(_Scaled):
    """Average pooling (EENets' `pool`).

    Maps are pooled to a grid of 4 x 4, 2 x 2 or 1 x 1 cells, the finest that keeps a classifier
    within 100,000 weights. Tokens are averaged. Several features are pooled each and joined.

    Args:
        site: where it stands.
        grid: cells along each side; None takes the finest.
    """

    def __init__(self, site: ExitSite, grid: int | None = None) -> None:
        grid = _checked_grid(site, grid)
        super().__init__(site, pooled_width(site.features, grid))
        self.grid = grid

    @property
    def pooling(self) -> str:
        return f"pooled to {self.grid}"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (pool(features, self.site.features, self.grid),)


class Flatten(_Scaled):
    """Every value of the features, flattened, as LEENet published it (EENets' `plain`)."""

    def __init__(self, site: ExitSite) -> None:
        super().__init__(site, sum(f.numel for f in site.features))

    @property
    def pooling(self) -> str:
        return "flattened"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (_of_width(join([feature.flatten(1) for feature in features]), self.width),)


class NormPoolNeck(Neck):
    """BatchNorm over the channels, then average pooling (EENets' `bnpool`).

    Args:
        site: where it stands.
        grid: cells along each side; None takes the finest, as `Pool`.
    """

    def __init__(self, site: ExitSite, grid: int | None = None) -> None:
        grid = _checked_grid(site, grid)
        super().__init__(site, pooled_width(site.features, grid))
        self.grid = grid
        self.norms = nn.ModuleList(nn.BatchNorm1d(f.channels) for f in site.features)

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        normed = []
        for feature, spec, norm in zip(pooled, self.site.features, self.norms, strict=True):
            channels_second = feature.movedim(spec.channel_axis, 1)
            flat = norm(channels_second.flatten(2) if len(spec.shape) > 2 else channels_second)
            normed.append(flat.view(channels_second.shape).movedim(1, spec.channel_axis))
        averages: Tensor = pool(normed, self.site.features, self.grid)
        return averages / math.sqrt(self.width)


class Conv(Neck):
    """X blocks of 3x3 convolution, BatchNorm and ReLU, then average pooling (PTEEnet's ConvX).

    The paper does not give the channels. Here maps that are finer than `size` are halved by
    convolutions of stride 2 that double the channels, and `blocks` more keep both; the last map is
    pooled to 2 x 2 cells.

    Args:
        site: where it stands; it needs maps.
        blocks: X, convolutions behind those that halve the map.
        size: longest side of the map that they see.
        channels: most channels; None allows four times those of the feature.
    """

    def __init__(
        self, site: ExitSite, blocks: int = 1, size: int = 8, channels: int | None = None
    ) -> None:
        for name, value in (("blocks", blocks), ("size", size), ("channels", channels)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"{name} of a 'conv' branch must be a whole number: {value!r}.")
        if blocks < 0 or size < 1 or (channels is not None and channels < 1):
            raise InputError(
                f"A 'conv' branch needs blocks ≥ 0, size ≥ 1, channels ≥ 1, got {blocks}, {size}, "
                f"{channels}."
            )
        if not all(f.is_map for f in site.features) or len({f.size for f in site.features}) > 1:
            shapes = [f.shape for f in site.features]
            raise InputError(
                f"A 'conv' branch reads maps (B, C, H, W) of one size, got {shapes}: 'pool' reads "
                "any features."
            )
        width = sum(f.channels for f in site.features)
        most = 4 * width if channels is None else channels
        longest = max(site.features[0].size)
        layers: list[nn.Module] = []
        while longest > size:
            longest = (longest + 1) // 2
            layers += _convolution(width, min(2 * width, most), stride=2)
            width = min(2 * width, most)
        for _ in range(blocks):
            layers += _convolution(width, width, stride=1)
        super().__init__(site, width * 4)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        specs = self.site.features
        maps = [f.movedim(s.channel_axis, 1) for f, s in zip(pooled, specs, strict=True)]
        out: Tensor = self.layers(join(maps))
        return GAIN * out / math.sqrt(self.width)


def _of_width(joined: Any, width: int) -> Any:
    if isinstance(joined, fx.Proxy):
        # Traced code asks when it runs.
        return joined.tracer.create_proxy("call_function", _of_width, (joined, width), {})
    if joined.shape[1] != width:
        raise InputError(
            f"A 'flatten' branch made for {width} values got {joined.shape[1]}: it fits one image "
            "size only; 'pool' fits any."
        )
    return joined


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _checked_grid(site: ExitSite, grid: int | None) -> int:
    if grid is None:
        return finest_grid(site)
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise InputError(f"grid must be a whole number from 1, got {grid!r}.")
    return grid
