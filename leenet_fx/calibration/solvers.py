"""Threshold solvers: the exits' confidence thresholds under which a budget is met."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from typing import TypeAlias

import torch
from torch import Tensor

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
    return continues.long().cumprod(1).sum(1)


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
    # Fractions, since a rounded sum can exceed the budget although the exact mean equals it.
    total = sum(count * Fraction(cost) for count, cost in zip(counts, values, strict=True))
    return float(total / len(exit_index))


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
    exits = confidence.shape[1]
    if budget >= values[-1]:
        return [math.inf] * exits
    candidates = [value for value in confidence.unique().tolist() if value >= lowest]

    def cost_at(threshold: float) -> float:
        return mean_cost(exit_indices_at(confidence, [threshold] * exits), values)

    affordable = bisect_right(candidates, budget, key=cost_at)
    if not affordable:
        raise _out_of_reach(budget, cost_at(candidates[0]) if candidates else values[-1], values)
    return [candidates[affordable - 1]] * exits


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
    if budget >= values[-1]:
        return [math.inf] * confidence.shape[1]
    # Exits at which no sample can exit have no share.
    usable = [k for k in range(confidence.shape[1]) if bool((confidence[:, k] >= lowest).any())]
    if not usable:
        raise _out_of_reach(budget, values[-1], values)
    points = []
    for rho in RATIOS:
        thresholds = [math.inf] * confidence.shape[1]
        for k, threshold in zip(
            usable, exponential_thresholds(confidence[:, usable], rho), strict=True
        ):
            thresholds[k] = max(threshold, lowest)
        points.append((mean_cost(exit_indices_at(confidence, thresholds), values), thresholds))
    affordable = [point for point in points if point[0] <= budget]
    if not affordable:
        raise _out_of_reach(budget, min(cost for cost, _ in points), values)
    return max(affordable, key=lambda point: point[0])[1]


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
    # Relative to the largest share, since ρᵏ of a large ρ overflows.
    powers = [rho ** (k - exits if rho > 1 else k) for k in range(exits + 1)]
    total = sum(powers)
    remaining = confidence
    thresholds = []
    for k in range(exits):
        exiting = min(math.floor(samples * powers[k] / total), len(remaining))
        threshold = math.inf
        if exiting:
            threshold = remaining[:, k].kthvalue(len(remaining) - exiting + 1).values.item()
        remaining = remaining[remaining[:, k] < threshold]
        thresholds.append(threshold)
    return thresholds


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
