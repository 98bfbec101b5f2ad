"""Threshold solvers: the exits' confidence thresholds under which a budget is met."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from numbers import Real
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leenet_fx.calibration.exit_counts import (
    Columns,
    CountTaker,
    columns_of,
    cost_range,
    mean_of_counts,
)
from leenet_fx.errors import InputError
from leenet_fx.registry import Registry

Solver: TypeAlias = Callable[..., list[float]]
"""(confidence (n, N), relative costs (N+1,), budget) → N confidence thresholds.

A sample exits at the first exit where its confidence is at least the threshold; a threshold of
math.inf disables the exit. The mean relative cost of the n samples is at most the budget.

A solver may be given `lowest=`, the lowest threshold that a policy can have, if that is above some
of the confidences: no sample of a lower confidence can exit.
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
    return mean_of_counts(counts, values)


@register_solver("common")
def common(
    confidence: Tensor,
    costs: Tensor | Sequence[float],
    budget: float,
    *,
    lowest: float = -math.inf,
) -> list[float]:
    """Return one threshold for all exits: the highest whose mean cost is within the budget.

    The mean cost does not decrease as the threshold rises, and changes at observed confidences
    only, so bisecting these is exact. (Shallow-Deep and PTEEnet have one threshold for all exits.)

    Args:
        confidence: (n, N), floating point, finite.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: highest mean relative cost.
        lowest: lowest threshold that the policy can have.

    Returns:
        N equal thresholds; math.inf if the budget allows the final classifier for all samples.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the lowest mean cost that
            can be reached.
    """
    values = _check(confidence, costs, budget)
    return _Common(columns_of(confidence), values, lowest).solve(budget)


@register_solver("exponential")
def exponential(
    confidence: Tensor,
    costs: Tensor | Sequence[float],
    budget: float,
    *,
    lowest: float = -math.inf,
) -> list[float]:
    """Return the `exponential_thresholds` whose mean cost is the highest within the budget.

    MSDNet's budgeted batch classification (Huang et al. 2018), with ρ from `RATIOS`; of several
    with the same mean cost, the smallest.

    Args:
        confidence: (n, N), floating point, finite.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: highest mean relative cost.
        lowest: lowest threshold that the policy can have.

    Returns:
        N thresholds; math.inf if the budget allows the final classifier for all samples.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the lowest mean cost that
            can be reached.
    """
    values = _check(confidence, costs, budget)
    if lowest > -math.inf:
        return _exponential_from(lowest, columns_of(confidence), values, budget)
    return _Exponential(columns_of(confidence), values).solve(budget)


def solve_budgets(
    solver: str,
    confidence: Tensor,
    costs: Tensor | Sequence[float],
    budgets: Sequence[float],
) -> list[list[float]]:
    """Return what a solver returns for each of many budgets, without repeating common work.

    Args:
        solver: name of a registered solver.
        confidence: (n, N), floating point, finite.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budgets: highest mean relative costs.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the cheapest exit's cost.
        UnknownNameError: no such solver.
    """
    solve = get_solver(solver)
    if not budgets or solve not in (common, exponential):
        return [solve(confidence, costs, budget) for budget in budgets]
    for budget in budgets:
        values = _check(confidence, costs, budget)
    columns = columns_of(confidence)
    prepared: _Common | _Exponential
    prepared = _Common(columns, values) if solve is common else _Exponential(columns, values)
    return [prepared.solve(budget) for budget in budgets]


class _Common:
    """Solver of `common`, for any number of budgets.

    Args:
        columns: confidences.
        costs: N+1, non-decreasing.
        lowest: lowest threshold that the policy can have.
    """

    def __init__(self, columns: Columns, costs: Sequence[float], lowest: float = -math.inf) -> None:
        self.costs = costs
        # A sample exits at or before k iff its highest confidence up to k reaches the threshold.
        self.highest = np.maximum.accumulate(columns)
        candidates = np.sort(self.highest, axis=None)
        self.candidates = candidates[candidates >= lowest]

    def solve(self, budget: float) -> list[float]:
        exits = len(self.highest)
        if budget >= self.costs[-1]:
            return [math.inf] * exits
        affordable = bisect_right(self.candidates, budget, key=self.cost_at)
        if not affordable:
            found = self.cost_at(self.candidates[0]) if len(self.candidates) else self.costs[-1]
            raise _out_of_reach(budget, found, self.costs)
        return [float(self.candidates[affordable - 1])] * exits

    def cost_at(self, threshold: float) -> float:
        continuing = [int(np.count_nonzero(row < threshold)) for row in self.highest]
        edges = [self.highest.shape[1], *continuing, 0]
        return mean_of_counts([arriving - going for arriving, going in pairwise(edges)], self.costs)


class _Exponential:
    """Solver of `exponential`, for any number of budgets.

    Args:
        columns: confidences.
        costs: N+1, non-decreasing.
    """

    def __init__(self, columns: Columns, costs: Sequence[float]) -> None:
        self.columns, self.costs = columns, costs
        exits, samples = columns.shape
        self.counts = _counts_of_ratios(samples, exits)
        self.lowest, self.highest = cost_range(columns, self.counts, costs)
        self.taker = CountTaker(columns)
        self.points: dict[int, tuple[list[float], float]] = {}

    def solve(self, budget: float) -> list[float]:
        if budget >= self.costs[-1]:
            return [math.inf] * len(self.columns)
        tolerance = 1e-9 * max(map(abs, self.costs))
        possible = np.flatnonzero(self.lowest <= budget + tolerance)
        # In descending order of what each could reach, until none can reach the best found.
        reachable = np.minimum(self.highest[possible], budget)
        best: tuple[float, int] = (-math.inf, 0)
        thresholds: list[float] = []
        for place in np.argsort(-reachable, kind="stable"):
            if reachable[place] < best[0] - tolerance:
                break
            index = int(possible[place])
            found, cost = self.point(index)
            if cost <= budget and (cost, -index) > best:
                best, thresholds = (cost, -index), found
        return list(thresholds)

    def point(self, index: int) -> tuple[list[float], float]:
        """Return the thresholds and the mean cost for a row of the counts."""
        if index not in self.points:
            thresholds, exiting = self.taker.take(self.counts[index].tolist())
            self.points[index] = thresholds, mean_of_counts(exiting, self.costs)
        return self.points[index]


def _exponential_from(
    lowest: float, columns: Columns, costs: Sequence[float], budget: float
) -> list[float]:
    """Solve `exponential` for policies whose thresholds are at least `lowest`."""
    if budget >= costs[-1]:
        return [math.inf] * len(columns)
    # Exits at which no sample can exit have no share.
    usable = np.flatnonzero((columns >= lowest).any(1))
    if not len(usable):
        raise _out_of_reach(budget, costs[-1], costs)
    found: dict[tuple[float, ...], float] = {}
    taker = CountTaker(columns[usable])
    for counts in _counts_of_ratios(columns.shape[1], len(usable)):
        thresholds = np.full(len(columns), math.inf)
        thresholds[usable] = np.maximum(taker.take(counts.tolist())[0], lowest)
        key = tuple(thresholds.tolist())
        if key not in found:
            exits = exit_indices_at(torch.from_numpy(columns.T), key)
            found[key] = mean_cost(exits, costs)
    affordable = [(cost, key) for key, cost in found.items() if cost <= budget]
    if not affordable:
        raise _out_of_reach(budget, min(found.values()), costs)
    return list(max(affordable, key=lambda pair: pair[0])[1])


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
    return CountTaker(columns_of(confidence)).take(counts)[0]


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
    _check_number(budget)
    if not budget >= values[0]:
        raise _out_of_reach(budget, values[0], values)
    return values


def _check_number(budget: object) -> None:
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise InputError(f"The budget must be a number, a relative cost, got {budget!r}.")


def _out_of_reach(budget: float, reachable: float, costs: Sequence[float]) -> InputError:
    """Return the error for a budget below the lowest mean cost that can be reached."""
    at_first = reachable == costs[0]
    first = "all at the first exit" if at_first else "the lowest that this policy and solver reach"
    return InputError(
        f"The budget is {budget!r}, but a mean cost can only lie between {reachable!r}, {first}, "
        f"and {costs[-1]!r}, all at the final classifier."
    )


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
