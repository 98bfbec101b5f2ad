"""Thresholds for a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from leenet_fx.calibration.cached_outputs import confidences, outputs_of_data
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.errors import InputError
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.methods import get_method
from leenet_fx.policies import NeverExit, Policy, ThresholdPolicy
from leenet_fx.surgery.module import EarlyExitModule


def monotone_costs(
    ee: EarlyExitModule, cost: str = "flops", policy: Policy | None = None
) -> tuple[float, ...]:
    """Return the N+1 costs relative to the backbone, made non-decreasing as solvers require.

    All exits are counted as enabled. Thresholds that disable some cost less, never more.

    With gates that decide before the head runs, a late exit with an expensive classifier can cost
    more than the final classifier, for which no head of an exit runs. The final classifier is then
    counted at the cost of that exit, so the mean cost still lies within the budget.

    Args:
        ee: the network.
        cost: "flops", "params", "bytes" or "seconds".
        policy: decides at the exits; None takes the network's.

    Raises:
        UnknownNameError: no such cost.
        InputError: seconds were not measured.
    """
    costs = ee.costs_for(ee.policy if policy is None else policy, enabled=True)
    return tuple(accumulate(costs.relative(cost), max))


def policy_with_thresholds(ee: EarlyExitModule) -> ThresholdPolicy:
    """Return the policy of a network; that of its method if early exits are disabled.

    Raises:
        InputError: it has no thresholds.
    """
    policy = ee.policy
    if isinstance(policy, NeverExit):
        for point in reversed(ee.spec.operating_points):
            built = point.build_policy()
            if isinstance(built, ThresholdPolicy):
                return built
        method = ee.spec.method
        if method is not None:
            policy = get_method(method.name, **method.options).policy_for(ee.num_exits)
    if not isinstance(policy, ThresholdPolicy):
        raise InputError(
            f"The policy {policy!r} has no thresholds: fit first, or set ee.policy, for instance "
            "to leenet_fx.MaxProbability(1.0)."
        )
    return policy


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
    get_solver(solver)
    costs = monotone_costs(ee, cost)
    if isinstance(budget, (int, float)) and budget > 1.01 * max(1.0, costs[-1]):
        raise InputError(
            f"The budget is {budget!r}, but it is a share of the backbone's cost"
            f"{backbone_cost(ee, cost)}, at most 1."
        )
    outputs = outputs_of_data(ee, data, labelled=False)
    confidence = confidences(ee, policy, outputs)
    thresholds = budget_thresholds(policy, confidence, costs, budget, solver)
    ee.policy = policy.with_confidence(thresholds)
    return ee.policy


def backbone_cost(ee: EarlyExitModule, cost: str) -> str:
    """Return what a budget is relative to, such as " of 3.6 GFLOPs per image", for messages.

    Args:
        ee: the network.
        cost: cost kind; for seconds that were not measured, and unknown kinds, the text is empty.
    """
    backbone = ee.costs.backbone
    if cost == "seconds":
        seconds = None if ee.latency is None else ee.latency.backbone_seconds()
        return "" if seconds is None else f" of {seconds:.3g} s per image"
    units = {"flops": "FLOPs per image", "params": "parameters", "bytes": "bytes per image"}
    return f" of {getattr(backbone, cost):.3g} {units[cost]}" if cost in units else ""


def budget_thresholds(
    policy: ThresholdPolicy,
    confidence: Tensor,
    costs: Sequence[float],
    budget: float,
    solver: str = "common",
) -> list[float]:
    """Return confidence thresholds that meet a budget and that a policy takes.

    Args:
        policy: of the network.
        confidence: (n, N) on the scale of the policy.
        costs: (N+1,) relative costs, non-decreasing.
        budget: highest mean cost.
        solver: name of a registered solver.

    Raises:
        InputError: values that do not fit; a budget that the policy cannot reach.
        UnknownNameError: no such solver.
    """
    lowest = _lowest_threshold(policy, confidence)
    limits = {} if lowest == -math.inf else {"lowest": lowest}
    return get_solver(solver)(confidence, costs, budget, **limits)


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
