"""Measured times of two networks on test sets of growing size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError


@dataclass(frozen=True)
class Timing:
    """Measured times on test sets of growing size, with the slopes of regression lines.

    Attributes:
        sizes: numbers of images.
        seconds: time of the network with exits on each test set.
        backbone_seconds: time of the backbone on each test set, in the same run.
        slope: seconds per image: slope of the least-squares line through `seconds`.
        backbone_slope: slope of the line through `backbone_seconds`.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    backbone_seconds: tuple[float, ...]
    slope: float
    backbone_slope: float

    @property
    def ratio(self) -> float:
        """Slope relative to the backbone's."""
        return self.slope / self.backbone_slope


class BatchTimer:
    """Measures two networks batch by batch.

    Attributes:
        seconds: time of each batch, for "ee" and "backbone".
        batch_sizes: number of images of each batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {"ee": [], "backbone": []}
        self.batch_sizes: list[int] = []

    def time(self, name: str, model: Callable[[Tensor], Any], images: Tensor) -> Any:
        """Run a model on a batch, record the time, and return the model's output."""
        self._synchronize()
        start = time.perf_counter()
        output = model(images)
        self._synchronize()
        self.seconds[name].append(time.perf_counter() - start)
        return output

    def total(self, name: str) -> float:
        """Return the time of a network over all batches, in seconds."""
        return sum(self.seconds[name])

    def timing(self, sizes: Sequence[int]) -> Timing:
        """Return the times of the first images, for each number of images in `sizes`.

        A part of a batch counts with its share of the batch's time.

        Raises:
            InputError: a size exceeds the number of images.
        """
        images = sum(self.batch_sizes)
        if sizes[-1] > images:
            raise InputError(f"sizes contains {sizes[-1]}, but loader has {images} images.")
        times = {name: [self._time_of_first(name, size) for size in sizes] for name in self.seconds}
        return Timing(
            sizes=tuple(sizes),
            seconds=tuple(times["ee"]),
            backbone_seconds=tuple(times["backbone"]),
            slope=linear_regression(sizes, times["ee"]).slope,
            backbone_slope=linear_regression(sizes, times["backbone"]).slope,
        )

    def _time_of_first(self, name: str, size: int) -> float:
        total, remaining = 0.0, size
        for count, seconds in zip(self.batch_sizes, self.seconds[name], strict=True):
            total += seconds * min(1.0, remaining / count)
            remaining -= count
            if remaining <= 0:
                break
        return total

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def check_sizes(sizes: Sequence[int] | None) -> tuple[int, ...]:
    """Return the sizes of test sets to time; none for None.

    Raises:
        InputError: fewer than two sizes, or they are not strictly increasing integers from 1.
    """
    if sizes is None:
        return ()
    checked = tuple(sizes)
    integers = all(isinstance(size, int) and not isinstance(size, bool) for size in checked)
    increasing = list(checked) == sorted(set(checked))
    if len(checked) < 2 or not integers or not increasing or checked[0] < 1:
        raise InputError(
            f"sizes must be two or more increasing whole numbers from 1, got {sizes!r}."
        )
    return checked
