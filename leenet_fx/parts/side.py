"""Necks of a side network: a state that passes from each exit to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.batch_norm import BatchNorm2d
from leenet_fx.parts.exit_site import ExitSite, FeatureShape, average_pool, pooled_width
from leenet_fx.parts.necks import CONV_GAIN, Neck
from leenet_fx.parts.whole_calls import traced_whole

FUSIONS = ("add", "concat", "gated")
PASSES = ("state", "detached", "nothing")
READS = ("average", "patches")
UNITS = ("separable", "full")

PerExit = int | Sequence[int]
"""One number for all exits, or one per exit; the last stands for all later exits."""


class SideNeck(Neck):
    """An exit's part of a side network along the backbone.

    The features are pooled to at most `resolution` x `resolution` cells and projected to `width`
    channels, fused with the state of the exit before, and refined by residual convolutions: the
    state. Its average over a grid goes to the head. So later exits build on the work of earlier
    ones. Side networks along a frozen backbone are known from transfer learning (Zhang et al. 2020,
    Side-Tuning; Sung et al. 2022, Ladder Side-Tuning), there with one output.

    Maps may have their channels at any axis. Tokens (B, T, C) are a map of T x 1 cells, pooled to
    at most `resolution`² of them; vectors are a map of one cell.

    Args:
        site: features and position.
        width: channels of the state, for all exits or one number per exit.
        resolution: cells along each side of the state, likewise.
        depth: residual units at each exit, likewise.
        fusion: with the projected features x and the previous state p: "add" is ReLU(x + p),
            "concat" projects both to one state, "gated" is g·x + (1−g)·p, with g for each sample
            and channel from the means of both.
        unit: "separable": a depthwise 3x3 and a pointwise convolution; "full": a 3x3 convolution.
        reads: "average": features are averaged over each cell; "patches": if their size is a
            multiple of the resolution, all values of each cell are read.
        passes: "state"; "detached": losses of later exits do not train earlier ones; "nothing":
            each exit stands alone.
        grid: cells along each side of the average that the head reads.

    Raises:
        InputError: an option is not in its range.
    """

    def __init__(
        self,
        site: ExitSite,
        width: PerExit = 48,
        resolution: PerExit = 8,
        depth: PerExit = 1,
        fusion: str = "add",
        unit: str = "separable",
        reads: str = "average",
        passes: str = "state",
        grid: int = 2,
    ) -> None:
        for name, choice, choices in (
            ("fusion", fusion, FUSIONS),
            ("unit", unit, UNITS),
            ("reads", reads, READS),
            ("passes", passes, PASSES),
        ):
            if choice not in choices:
                raise InputError(
                    f"{name} of a 'side' branch must be one of {', '.join(choices)}, got "
                    f"{choice!r}."
                )
        own = at_exit("width", width, site.position, 1)
        side = at_exit("resolution", resolution, site.position, 1)
        units = at_exit("depth", depth, site.position, 0)
        size = state_size(site.features[0], side)
        shape = FeatureShape((1, own, *size), 1)
        grid = min(at_exit("grid", grid, 0, 1), *size)
        super().__init__(site, pooled_width([shape], grid))
        self.carries_state = passes != "nothing"
        self.size, self.grid, self.fusion = size, grid, fusion
        self.reads, self.passes = reads, passes
        self._shape = shape
        channels = sum(f.channels * _values_per_cell(f, size, reads) for f in site.features)
        self.project = _pointwise(channels, own)
        previous = at_exit("width", width, site.position - 1, 1) if site.position else 0
        if previous and self.carries_state:
            if fusion == "concat":
                self.mix = _pointwise(own + previous, own)
            elif previous != own:
                self.mix = _pointwise(previous, own)
            if fusion == "gated":
                self.balance = nn.Linear(2 * own, own)
        self.units = nn.ModuleList(_unit(own, size, unit) for _ in range(units))

    @property
    def pooling(self) -> str:
        return f"side, {self.reads}, {self.size[0]} x {self.size[1]} cells"

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        pooled = []
        for feature, spec in zip(features, self.site.features, strict=True):
            cells = as_map(feature, spec)
            if _values_per_cell(spec, self.size, self.reads) > 1:
                cells = unshuffle(cells, map_size(spec)[0] // self.size[0])
            pooled.append(resize(cells, self.size))
        return tuple(pooled)

    def state(self, *pooled: Tensor, previous_state: Tensor | None = None) -> Tensor:
        inputs = pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)
        state: Tensor = self.project(inputs)
        if previous_state is not None:
            state = self._fuse(state, previous_state)
        state = F.relu(state)
        for unit in self.units:
            state = F.relu(state + unit(state))
        return state

    def forward(self, *pooled: Tensor) -> Tensor:
        state = pooled[0] if self.carries_state else self.state(*pooled)
        averages: Tensor = average_pool([state], [self._shape], self.grid)
        return CONV_GAIN * averages / math.sqrt(self.width)

    def _fuse(self, own: Tensor, previous: Tensor) -> Tensor:
        if self.passes == "detached":
            previous = previous.detach()
        previous = resize(previous, self.size)
        mixed: Tensor
        if self.fusion == "concat":
            mixed = self.mix(torch.cat([own, previous], 1))
            return mixed
        if "mix" in self._modules:
            previous = self.mix(previous)
        if self.fusion == "gated":
            means = torch.cat([own.mean((2, 3)), previous.mean((2, 3))], 1)
            share = self.balance(means).sigmoid().unsqueeze(2).unsqueeze(3)
            return torch.lerp(previous, own, share)
        mixed = own + previous
        return mixed


def at_exit(name: str, value: Any, position: int, least: int) -> int:
    """Return an option's value at an exit.

    Args:
        name: of the option, for the message.
        value: one number, or one per exit.
        position: number of earlier exits.
        least: smallest number allowed.

    Raises:
        InputError: not whole numbers from `least`.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or any(type(v) is not int or v < least for v in values):
        raise InputError(
            f"{name} of a 'side' branch must be a whole number from {least}, or a list of one per "
            f"exit, got {value!r}."
        )
    found: int = values[min(position, len(values) - 1)]
    return found


def map_size(spec: FeatureShape) -> tuple[int, int]:
    """Return height and width of features as a map; tokens have a width of 1."""
    height, width = (*spec.size, 1, 1)[:2]
    return height, width


def state_size(spec: FeatureShape, resolution: int) -> tuple[int, int]:
    """Return height and width of a state for features, with at most `resolution`² cells."""
    height, width = map_size(spec)
    if spec.is_map:
        return min(height, resolution), min(width, resolution)
    return min(height, resolution * resolution), 1


def as_map(feature: Tensor, spec: FeatureShape) -> Tensor:
    """Return features as a map (B, C, H, W)."""
    channels_second = feature.movedim(spec.channel_axis, 1) if spec.channel_axis != 1 else feature
    for _ in range(4 - len(spec.shape)):
        channels_second = channels_second.unsqueeze(-1)
    return channels_second


@traced_whole
def resize(values: Any, size: tuple[int, int]) -> Any:
    """Average a map (B, C, H, W) over the cells of a grid; a map of that size is kept."""
    return values if values.shape[2:] == size else F.adaptive_avg_pool2d(values, size)


@traced_whole
def unshuffle(values: Any, factor: int) -> Any:
    """Return a map (B, C, H, W) as (B, C·factor², H / factor, W / factor).

    As `torch.nn.functional.pixel_unshuffle`, which leaves the shape of an empty batch as it is.

    Args:
        values: the map.
        factor: cells of each side that become channels.

    Raises:
        InputError: height or width is no multiple of the factor.
    """
    height, width = values.shape[2:]
    if height % factor or width % factor:
        raise InputError(
            f"A 'side' branch with reads='patches' that was built for cells of {factor} x {factor} "
            f"values got features of {height} x {width}: choose an image size for which they are "
            "multiples, or reads='average', which accepts any."
        )
    cells = values.unflatten(3, (width // factor, factor)).unflatten(2, (height // factor, factor))
    return cells.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _values_per_cell(spec: FeatureShape, size: tuple[int, int], reads: str) -> int:
    """Return how many values of each channel a cell holds after pooling."""
    height, width = map_size(spec)
    factor = height // size[0]
    whole = spec.is_map and (height, width) == (factor * size[0], factor * size[1])
    return factor * factor if reads == "patches" and whole else 1


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), BatchNorm2d(outputs))


def _unit(width: int, size: tuple[int, int], kind: str) -> nn.Sequential:
    height, breadth = (3 if cells > 1 else 1 for cells in size)
    kernel, padding = (height, breadth), (height // 2, breadth // 2)
    if kind == "full":
        conv = nn.Conv2d(width, width, kernel, padding=padding, bias=False)
        return nn.Sequential(conv, BatchNorm2d(width))
    depthwise = nn.Conv2d(width, width, kernel, padding=padding, groups=width, bias=False)
    return nn.Sequential(depthwise, BatchNorm2d(width), nn.ReLU(), *_pointwise(width, width))
