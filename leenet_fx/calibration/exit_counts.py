"""Numbers of samples that exit at each exit, and their cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Columns: TypeAlias = npt.NDArray[Any]
"""Confidences with one contiguous row per exit, (N, n)."""


def columns_of(confidence: Tensor) -> Columns:
    """Return confidences (n, N) as one contiguous row per exit, in single or double precision."""
    values = confidence.detach().cpu()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return np.ascontiguousarray(values.numpy().T)


def mean_of_counts(counts: Sequence[int], costs: Sequence[float]) -> float:
    """Return the mean cost of samples, given how many have each of the costs."""
    # Exact integers, since a rounded sum can exceed the budget although the exact mean equals it.
    # The denominators of floating-point numbers are powers of two: the largest is common to all.
    ratios = [cost.as_integer_ratio() for cost in costs]
    largest = max(denominator for _, denominator in ratios)
    pairs = zip(counts, ratios, strict=True)
    total = sum(
        count * numerator * (largest // denominator) for count, (numerator, denominator) in pairs
    )
    return total / (largest * sum(counts))


class CountTaker:
    """Thresholds under which given numbers of samples exit, for many rows of numbers.

    Rows that lead to equal thresholds at the first exits leave the same samples there. The samples
    that the last row left at each exit are kept, so that only what differs is computed again; with
    many equal confidences, most rows differ little.

    Args:
        columns: confidences, (N, n).
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._levels: list[_Level] = []

    def take(self, counts: Sequence[int]) -> tuple[list[float], list[int]]:
        """Return the `share_thresholds`, and the N+1 numbers of samples that exit under them."""
        number = self._columns.shape[1]
        remaining: npt.NDArray[np.intp] | None = None
        thresholds, exiting = [], []
        for index, (column, count) in enumerate(zip(self._columns, counts, strict=True)):
            if index == len(self._levels):
                values = column if remaining is None else column[remaining]
                self._levels.append(_Level(values, remaining))
            level = self._levels[index]
            threshold = level.threshold(count) if count and number else math.inf
            if threshold != level.last:
                level.last = threshold
                level.continuing = level.remaining_below(threshold)
                del self._levels[index + 1 :]
            before, remaining = number, level.continuing
            number = before if remaining is None else len(remaining)
            thresholds.append(threshold)
            exiting.append(before - number)
        return thresholds, [*exiting, number]


class _Level:
    """The samples that arrive at an exit, and those that the last threshold left.

    Attributes:
        values: confidences of the arriving samples.
        arriving: their positions; None for all.
        last: the threshold that was applied last; NaN before the first.
        continuing: positions of the samples that continued under it; None for all.
    """

    def __init__(self, values: npt.NDArray[Any], arriving: npt.NDArray[np.intp] | None) -> None:
        self.values, self.arriving = values, arriving
        self.last = math.nan
        self.continuing: npt.NDArray[np.intp] | None = None
        self._ordered: npt.NDArray[Any] | None = None
        self._used = False

    def threshold(self, count: int) -> float:
        """Return the confidence of the `count`-th most confident sample, or of the last."""
        place = max(len(self.values) - count, 0)
        if self._ordered is None and self._used:
            self._ordered = np.sort(self.values)
        # One value is found faster than all are sorted.
        self._used = True
        ordered = np.partition(self.values, place) if self._ordered is None else self._ordered
        return float(ordered[place])

    def remaining_below(self, threshold: float) -> npt.NDArray[np.intp] | None:
        """Return the positions of the samples whose confidence is below a threshold."""
        if threshold == math.inf:
            return self.arriving
        below = np.flatnonzero(self.values < threshold)
        return below if self.arriving is None else self.arriving[below]


def cost_range(
    columns: Columns, counts: npt.NDArray[np.int64], costs: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return bounds (R,), (R,) of the mean cost under the `share_thresholds` of R rows of counts.

    Without ties, exactly the given numbers of samples exit; with ties up to `_overshoot` more.

    Args:
        columns: confidences.
        counts: (R, N) numbers of samples.
        costs: N+1, non-decreasing.
    """
    samples = columns.shape[1]
    saved = np.diff(costs) / samples
    more = np.stack([_overshoot(*pair) for pair in zip(columns, counts.T, strict=True)], 1)

    def mean(exiting: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = costs[-1] - np.minimum(exiting.cumsum(1), samples) @ saved
        return result

    return mean(counts + more), mean(counts)


def _overshoot(column: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many samples more than `counts` can exit because of equal confidences, (R,).

    If the threshold is a value that t samples have, and g samples have it or a higher one, then
    fewer than t more exit, and in all at most g, whichever of the samples remain.
    """
    ordered = np.sort(column)
    changes = np.flatnonzero(ordered[1:] != ordered[:-1])
    # From the highest value on.
    ties = np.diff(changes, prepend=-1, append=len(ordered) - 1)[::-1]
    reaching = ties.cumsum()
    largest = np.append(np.maximum.accumulate(ties[::-1])[::-1], 1) - 1
    place = np.searchsorted(reaching, counts, side="right")
    within = np.append(reaching, len(ordered))[place] - counts
    first = np.minimum(np.append(ties, 1)[place] - 1, within)
    result = np.maximum(first, largest[np.minimum(place + 1, len(ties))])
    return np.where(counts > 0, result, 0)
