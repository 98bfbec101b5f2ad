"""Thresholds for a budget."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from leenet_fx.calibration.cached_outputs import ask, confidences
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.errors import InputError
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.policies import Policy, ThresholdPolicy
from leenet_fx.surgery.module import EarlyExitModule


def monotone_costs(ee: EarlyExitModule, cost: str = "flops") -> tuple[float, ...]:
    """(N+1,) relative costs for solvers, which take none that fall from one exit to the next.

    Behind a gate that decides alone, a late exit with a costly classifier can cost more than the
    final one, where no exit's classifier runs. There the final one counts as much: what is spent is
    within the budget all the more.
    """
    return tuple(accumulate(ee.costs.relative(cost), max))


def set_budget(
    ee: EarlyExitModule,
    data: Iterable[Any] | FeatureCache,
    budget: float,
    *,
    solver: str = "common",
    cost: str = "flops",
) -> Policy:
    """Sets the thresholds of the active policy so that samples like these spend a budget.

    Labels are not read. What is spent on other images may differ: nothing is promised.

    Args:
        ee: a fitted network, whose policy has thresholds.
        data: images (with or without labels) that nothing was fitted on; or kept features.
        budget: mean cost, relative to the plain model.
        solver: "common", one threshold for all exits; or "exponential", one for each, so that
            shares ∝ ρᵏ leave (MSDNet).
        cost: "flops", "params" or "bytes".

    Returns:
        The policy, which is active.

    Raises:
        InputError: the policy has no thresholds; a budget below the first exit's cost.
        UnknownNameError: no such solver or cost.
    """
    policy = ee.policy
    if not isinstance(policy, ThresholdPolicy):
        raise InputError(f"The policy {policy!r} has no thresholds: fit first.")
    solve = get_solver(solver)
    costs = monotone_costs(ee, cost)
    made = None if isinstance(data, FeatureCache) else cache_features(ee, data, labelled=False)
    try:
        kept = data if isinstance(data, FeatureCache) else made
        assert kept is not None
        found = solve(confidences(ee, policy, ask(ee, kept)), costs, budget)
    finally:
        if made is not None:
            made.close()
    ee.policy = policy.with_confidence(found)
    return ee.policy
