"""Thresholds for a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from torch import Tensor

from leenet_fx.calibration.cached_outputs import compute_outputs, confidences
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.errors import InputError
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.policies import Policy, ThresholdPolicy
from leenet_fx.surgery.module import EarlyExitModule


def monotone_costs(ee: EarlyExitModule, cost: str = "flops") -> tuple[float, ...]:
    """Return the N+1 costs relative to the backbone, made non-decreasing as solvers require.

    With gates that decide before the head runs, a late exit with an expensive classifier can cost
    more than the final classifier, for which no head of an exit runs. The final classifier is then
    counted at the cost of that exit, so the mean cost still lies within the budget.

    Args:
        ee: the network.
        cost: "flops", "params" or "bytes".

    Raises:
        UnknownNameError: no such cost.
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
    """Set the thresholds of the active policy so that the mean cost on `data` meets a budget.

    Labels are not read. On images of another distribution the mean cost may differ.

    Args:
        ee: a fitted network whose policy has thresholds.
        data: images (with or without labels) on which nothing was fitted; or a feature cache.
        budget: mean cost, relative to the backbone.
        solver: "common", one threshold for all exits; or "exponential", one for each exit, so
            that the share of samples that exit at k is proportional to ρᵏ (MSDNet).
        cost: "flops", "params" or "bytes".

    Returns:
        The policy, which is also the network's active policy.

    Raises:
        InputError: the policy has no thresholds; the budget is below the lowest mean cost that the
            policy can reach on these images: that of the first exit, or for `Patience` that of a
            patience of 1.
        UnknownNameError: no such solver or cost.
    """
    policy = ee.policy
    if not isinstance(policy, ThresholdPolicy):
        raise InputError(f"The policy {policy!r} has no thresholds: fit first.")
    solve = get_solver(solver)
    costs = monotone_costs(ee, cost)
    if isinstance(data, FeatureCache):
        outputs = compute_outputs(ee, data)
    else:
        with cache_features(ee, data, labelled=False) as cache:
            outputs = compute_outputs(ee, cache)
    confidence = confidences(ee, policy, outputs)
    lowest = _lowest_threshold(policy, confidence)
    limits = {} if lowest == -math.inf else {"lowest": lowest}
    ee.policy = policy.with_confidence(solve(confidence, costs, budget, **limits))
    return ee.policy


def _lowest_threshold(policy: ThresholdPolicy, confidence: Tensor) -> float:
    """Return the lowest of the confidences that the policy takes as a threshold.

    Returns:
        −math.inf if it takes all, math.inf if it takes none.
    """
    rejected = False
    for value in confidence.unique().tolist():
        try:
            policy.with_confidence(value)
        except InputError:
            rejected = True
        else:
            return value if rejected else -math.inf
    return math.inf
