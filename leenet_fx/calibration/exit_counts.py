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


def take_counts(columns: Columns, counts: Sequence[int]) -> tuple[list[float], list[int]]:
    """Return the `share_thresholds`, and the N+1 numbers of samples that exit under them."""
    remaining: npt.NDArray[np.intp] | None = None
    number = columns.shape[1]
    thresholds, exiting = [], []
    for column, count in zip(columns, counts, strict=True):
        threshold = math.inf
        before = number
        if count and number:
            values = column if remaining is None else column[remaining]
            place = max(number - count, 0)
            threshold = float(np.partition(values, place)[place])
            continuing = np.flatnonzero(values < threshold)
            remaining = continuing if remaining is None else remaining[continuing]
            number = len(remaining)
        thresholds.append(threshold)
        exiting.append(before - number)
    return thresholds, [*exiting, number]


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
