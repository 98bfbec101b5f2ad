"""Measured times of two networks on test sets of growing size."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor

from leenet_fx.cost.page_faults import page_faults, warn_if_memory_is_returned
from leenet_fx.errors import InputError

MIN_PAIRS = 20
"""Number of measurements of both networks that an interval is computed from, if time allows."""

REPEAT_SECONDS = 20.0
"""Time after which batches are measured once only."""


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
    """Measures two networks batch by batch, repeatedly if there are few batches.

    Attributes:
        device: that computes.
        repeats: number of times that each batch is measured, unless that takes too long.
        seconds: median time of each batch, for "ee" and "backbone".
        pairs: time of each single measurement, for "ee" and "backbone" in the same order.
        counts: number of images of each measurement.
        batch_sizes: number of images of each batch.
        faults: number of page faults during the measurements; None where none matter.
    """

    def __init__(self, device: torch.device, batches: int | None = None) -> None:
        """Plan the measurements.

        Args:
            device: that computes.
            batches: number of batches; None if it is unknown.
        """
        self.device = device
        self.repeats = 1 if not batches else max(1, math.ceil(MIN_PAIRS / batches))
        self.seconds: dict[str, list[float]] = {"ee": [], "backbone": []}
        self.pairs: dict[str, list[float]] = {"ee": [], "backbone": []}
        self.counts: list[int] = []
        self.batch_sizes: list[int] = []
        self.faults = None if page_faults(device) is None else 0
        self._spent = 0.0

    def measure(
        self, models: Mapping[str, Callable[[Tensor], Any]], images: Tensor
    ) -> dict[str, Any]:
        """Time both models on a batch, and return their outputs.

        Args:
            models: "ee" and "backbone".
            images: (B, …).
        """
        times: dict[str, list[float]] = {name: [] for name in models}
        outputs: dict[str, Any] = {}
        for repeat in range(self.repeats):
            if repeat and self._spent > REPEAT_SECONDS:
                break
            # The order alternates, so that neither network always runs with the warmer cache.
            forward = (len(self.batch_sizes) + repeat) % 2 == 0
            for name in models if forward else reversed(list(models)):
                output, seconds = self._time(models[name], images)
                times[name].append(seconds)
                outputs.setdefault(name, output)
                if repeat:
                    self._spent += seconds
        for name, measured in times.items():
            self.seconds[name].append(statistics.median(measured))
            self.pairs[name] += measured
        self.counts += [len(images)] * len(times["ee"])
        self.batch_sizes.append(len(images))
        return outputs

    def _time(self, model: Callable[[Tensor], Any], images: Tensor) -> tuple[Any, float]:
        """Return a model's output for a batch, and its seconds."""
        before = page_faults(self.device)
        self._synchronize()
        start = time.perf_counter()
        output = model(images)
        self._synchronize()
        seconds = time.perf_counter() - start
        after = page_faults(self.device)
        if self.faults is not None and before is not None and after is not None:
            self.faults += after - before
        return output, seconds

    def total(self, name: str) -> float:
        """Return the time of a network over all batches, in seconds."""
        return sum(self.seconds[name])

    def check_memory(self) -> None:
        """Log a warning if the times depend on memory that is handed back to the system."""
        warn_if_memory_is_returned(self.faults, sum(map(sum, self.pairs.values())))

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
