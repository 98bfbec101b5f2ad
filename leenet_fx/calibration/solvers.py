"""Threshold solvers: the exits' confidence thresholds under which a budget is met."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import Registry

Columns: TypeAlias = npt.NDArray[Any]
"""Confidences with one contiguous row per exit, (N, n)."""

Solver: TypeAlias = Callable[[Tensor, "Tensor | Sequence[float]", float], list[float]]
"""(confidence (n, N), relative costs (N+1,), budget) → N confidence thresholds.

A sample exits at the first exit where its confidence is at least the threshold; a threshold of
math.inf disables the exit. The mean relative cost of the n samples is at most the budget.
"""

_solvers: Registry[Solver] = Registry("solver", "leenet_fx.solvers")
register_solver = _solvers.register
list_solvers = _solvers.names
get_solver = _solvers.get

RATIOS = (0.0, *(10 ** (step / 200) for step in range(-600, 601)))
"""The ρ that `exponential` tries: 0, for which all samples exit at the first exit, and 200 values
for each power of ten from 0.001 to 1000."""


def exit_indices_at(confidence: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return each sample's first exit where its confidence is at least the threshold.

    Args:
        confidence: (n, N), floating point, finite.
        thresholds: compared in the precision of `confidence`, as policies do.

    Returns:
        (n,) exit indices; N is the final classifier.

    Raises:
        InputError: shapes or values that do not fit.
    """
    _check_confidence(confidence)
    if len(thresholds) != confidence.shape[1]:
        raise InputError(
            f"Expected one threshold for each of {confidence.shape[1]} exits, got "
            f"{len(thresholds)}."
        )
    continues = confidence < confidence.new_tensor(thresholds)
    # The product is 1 up to the sample's exit, and 0 from it on.
    return continues.cumprod(1, dtype=torch.uint8).sum(1)


def mean_cost(exit_index: Tensor, costs: Tensor | Sequence[float]) -> float:
    """Return the mean relative cost of samples that exit at these exits, correctly rounded.

    Args:
        exit_index: (n,) exit indices, n ≥ 1.
        costs: (N+1,) relative cost of each exit and of the final classifier.

    Raises:
        InputError: no samples, or an exit without a cost.
    """
    values = _values(costs)
    if exit_index.ndim != 1 or not len(exit_index):
        raise InputError(f"Expected exit indices (n,), n ≥ 1, got {tuple(exit_index.shape)}.")
    counts = exit_index.bincount(minlength=len(values)).tolist()
    if len(counts) > len(values):
        raise InputError(f"Exit index {len(counts) - 1} has no cost: only {len(values)} are given.")
    return _mean(counts, values)


@register_solver("common")
def common(confidence: Tensor, costs: Tensor | Sequence[float], budget: float) -> list[float]:
    """Return one threshold for all exits: the highest whose mean cost is within the budget.

    The mean cost does not decrease as the threshold rises, and changes at observed confidences
    only, so bisecting these is exact. (Shallow-Deep and PTEEnet have one threshold for all exits.)

    Args:
        confidence: (n, N), floating point, finite.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: highest mean relative cost.

    Returns:
        N equal thresholds; math.inf if the budget allows the final classifier for all samples.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the cheapest exit's cost.
    """
    values = _check(confidence, costs, budget)
    samples, exits = confidence.shape
    if budget >= values[-1]:
        return [math.inf] * exits
    # A sample exits at or before k iff its highest confidence up to k reaches the threshold.
    highest = np.maximum.accumulate(_columns(confidence))
    candidates = np.sort(highest, axis=None)

    def cost_at(threshold: float) -> float:
        continuing = [int(np.count_nonzero(row < threshold)) for row in highest]
        return _mean([m - n for m, n in pairwise([samples, *continuing, 0])], values)

    affordable = bisect_right(candidates, budget, key=cost_at)
    return [float(candidates[affordable - 1])] * exits


@register_solver("exponential")
def exponential(confidence: Tensor, costs: Tensor | Sequence[float], budget: float) -> list[float]:
    """Return the `exponential_thresholds` whose mean cost is the highest within the budget.

    MSDNet's budgeted batch classification (Huang et al. 2018), with ρ from `RATIOS`; of several
    with the same mean cost, the smallest.

    Args:
        confidence: (n, N), floating point, finite.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: highest mean relative cost.

    Returns:
        N thresholds; math.inf if the budget allows the final classifier for all samples.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the cheapest exit's cost.
    """
    values = _check(confidence, costs, budget)
    samples, exits = confidence.shape
    if budget >= values[-1]:
        return [math.inf] * exits
    columns = _columns(confidence)
    counts = _counts_of_ratios(samples, exits)
    lowest, highest = _cost_range(columns, counts, values)
    tolerance = 1e-9 * max(map(abs, values))
    possible = np.flatnonzero(lowest <= budget + tolerance)
    # In descending order of what each could reach, until none can reach the best found.
    reachable = np.minimum(highest[possible], budget)
    best: tuple[float, int] = (-math.inf, 0)
    thresholds: list[float] = []
    for place in np.argsort(-reachable, kind="stable"):
        if reachable[place] < best[0] - tolerance:
            break
        index = int(possible[place])
        found, exiting = _take(columns, counts[index].tolist())
        cost = _mean(exiting, values)
        if cost <= budget and (cost, -index) > best:
            best, thresholds = (cost, -index), found
    return thresholds


def exponential_thresholds(confidence: Tensor, rho: float) -> list[float]:
    """Return thresholds under which the share of samples that exit at k is proportional to ρᵏ.

    Shares are over k = 0..N, the final classifier included. Tₖ is the confidence of the
    ⌊n·shareₖ⌋-th most confident of the remaining samples, or of the last if fewer remain; math.inf
    if that is no sample. All remaining samples that tie with Tₖ exit, as they do under the policy,
    and so are not counted at later exits (MSDNet, Huang et al. 2018).

    Args:
        confidence: (n, N), floating point, finite.
        rho: ≥ 0. Below 1 most samples exit early; 1 is equal shares; 0 is all at the first exit.

    Returns:
        N thresholds.

    Raises:
        InputError: shapes or values that do not fit.
    """
    _check_confidence(confidence)
    if not 0 <= rho < math.inf:
        raise InputError(f"Expected a finite ratio ρ ≥ 0, got {rho!r}.")
    samples, exits = confidence.shape
    return share_thresholds(confidence, _counts(samples, exits, rho))


def share_thresholds(confidence: Tensor, counts: Sequence[int]) -> list[float]:
    """Return thresholds under which given numbers of samples exit at each exit.

    Tₖ is the confidence of the `counts[k]`-th most confident of the remaining samples, or of the
    last if fewer remain; math.inf if that is no sample. Remaining samples that tie with Tₖ exit.

    Args:
        confidence: (n, N), floating point, finite.
        counts: N numbers of samples, ≥ 0.

    Returns:
        N thresholds.

    Raises:
        InputError: shapes or values that do not fit.
    """
    _check_confidence(confidence)
    if len(counts) != confidence.shape[1] or any(count < 0 for count in counts):
        raise InputError(
            f"Expected numbers of samples ≥ 0 for {confidence.shape[1]} exits, got {counts!r}."
        )
    return _take(_columns(confidence), counts)[0]


def _columns(confidence: Tensor) -> Columns:
    values = confidence.detach().cpu()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return np.ascontiguousarray(values.numpy().T)


def _mean(counts: Sequence[int], costs: Sequence[float]) -> float:
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


def _take(columns: Columns, counts: Sequence[int]) -> tuple[list[float], list[int]]:
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


def _counts(samples: int, exits: int, rho: float) -> list[int]:
    """Return how many of the samples shall exit at each of the exits for a ratio ρ."""
    # Relative to the largest share, since ρᵏ of a large ρ overflows.
    powers = [rho ** (k - exits if rho > 1 else k) for k in range(exits + 1)]
    total = sum(powers)
    return [math.floor(samples * power / total) for power in powers[:-1]]


@lru_cache(maxsize=8)
def _counts_of_ratios(samples: int, exits: int) -> npt.NDArray[np.int64]:
    """Return the distinct counts (R, N) of all `RATIOS`, in the order of the ratios."""
    rows = dict.fromkeys(tuple(_counts(samples, exits, rho)) for rho in RATIOS)
    return np.array(list(rows), dtype=np.int64)


def _cost_range(
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


def _check(confidence: Tensor, costs: Tensor | Sequence[float], budget: float) -> list[float]:
    """Return the costs as floats; raise InputError if the arguments do not fit together."""
    _check_confidence(confidence)
    values = _values(costs)
    if len(values) != confidence.shape[1] + 1:
        raise InputError(
            f"Expected {confidence.shape[1] + 1} costs, one for each exit and one for the final "
            f"classifier, got {len(values)}."
        )
    if any(later < earlier for earlier, later in pairwise(values)):
        raise InputError(f"Costs must not decrease from one exit to the next, got {values}.")
    if not budget >= values[0]:
        raise InputError(
            f"The budget is {budget!r}, but a mean cost can only lie between {values[0]!r}, all at "
            f"the first exit, and {values[-1]!r}, all at the final classifier."
        )
    return values


def _check_confidence(confidence: Tensor) -> None:
    if not confidence.is_floating_point() or confidence.ndim != 2 or not confidence.numel():
        raise InputError(
            "Expected floating-point confidences (n, N) with n ≥ 1 samples and N ≥ 1 exits, got "
            f"{confidence.dtype} {tuple(confidence.shape)}."
        )
    if not bool(confidence.isfinite().all()):
        raise InputError("Confidences must be finite; some are NaN or infinite.")


def _values(costs: Tensor | Sequence[float]) -> list[float]:
    values = torch.as_tensor(costs, dtype=torch.float64)
    if values.ndim != 1 or not bool(values.isfinite().all()):
        raise InputError(f"Expected finite costs (N+1,), got {costs!r}.")
    numbers: list[float] = values.tolist()
    return numbers
