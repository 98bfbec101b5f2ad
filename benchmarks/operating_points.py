"""Operating points of a trained network: chosen on the calibration split, measured on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import leenet_fx
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    batch_outputs,
    cached_exit_indices,
    concatenate,
    confidences,
)
from leenet_fx.calibration.searched import Problem, searched_budget
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.features.feature_batch import FeatureBatch, extract_features
from leenet_fx.methods import Method
from leenet_fx.policies import Patience, Policy, ThresholdPolicy

STEPS = 100
"""Number of steps between the quantiles of the confidences that become thresholds."""

BUDGETS = 24
"""Number of steps between the budgets that exponential exit shares are solved for."""

SCHEDULES = 8
"""Number of steps between the budgets of EENet's scheduler, of which each takes many seconds."""


@torch.no_grad()
def outputs_of(ee: leenet_fx.EarlyExitModule, loader: Any) -> CachedOutputs:
    """Return the outputs of all exits on the CPU, from one pass of a network on any device."""
    branches = list(ee.exits.branches())
    parts = []
    for images, labels in loader:
        pooled, final, _ = extract_features(ee, images.to(ee.device))
        found = batch_outputs(
            branches, FeatureBatch(pooled, final, None, labels.to(ee.device), len(labels))
        )
        parts.append(
            CachedOutputs(
                tuple(values.cpu() for values in found.logits),
                tuple(values.cpu() for values in found.gate_inputs),
                labels.cpu(),
            )
        )
    return concatenate(parts)


def swept(
    ee: leenet_fx.EarlyExitModule, method: Method, outputs: CachedOutputs
) -> Iterator[tuple[Policy, float]]:
    """Yield the policies of a method's trade-off, and the parameter of each.

    Args:
        ee: the network, on the CPU.
        method: that it was trained by.
        outputs: of the calibration split.
    """
    policy = ee.policy
    if method.trade_off == "patience":
        for patience in range(1, ee.num_exits):
            yield Patience(patience), patience
        return
    if method.trade_off == "alpha":
        for step in range(21):
            yield policy.with_alpha(step / 20), step / 20
        return
    assert isinstance(policy, ThresholdPolicy)
    costs = monotone_costs(ee)
    count = SCHEDULES if method.trade_off == "schedule" else BUDGETS
    budgets = [costs[0] + (costs[-1] - costs[0]) * step / count for step in range(count + 1)]
    if method.trade_off == "schedule":
        problem = Problem(ee, policy, outputs, "flops")
        for budget in budgets:
            generator = torch.Generator().manual_seed(0)
            chosen, thresholds = searched_budget("eenet", problem, budget, generator)
            yield chosen.with_confidence(thresholds), budget
        return
    confidence = confidences(ee, policy, outputs)
    if method.trade_off == "exit_shares":
        for budget in budgets:
            yield (
                policy.with_confidence(get_solver("exponential")(confidence, costs, budget)),
                budget,
            )
        return
    values = confidence.flatten().double().sort().values
    at = torch.linspace(0, len(values) - 1, STEPS + 1).long()
    for threshold in values[at].unique().tolist():
        yield policy.with_confidence(threshold), threshold


def measured(
    ee: leenet_fx.EarlyExitModule,
    policy: Policy,
    outputs: Mapping[str, CachedOutputs],
    accounting: str,
) -> dict[str, Any]:
    """Return cost and accuracy of a policy on each split.

    Args:
        ee: the network, on the CPU.
        policy: decides at the exits.
        outputs: by split.
        accounting: "flops", "own branch" or "params".
    """
    table = ee.costs_for(policy)
    costs = (
        table.relative(own_branch=True)
        if accounting == "own branch"
        else table.relative("params" if accounting == "params" else "flops")
    )
    point: dict[str, Any] = {}
    for split, values in outputs.items():
        taken = cached_exit_indices(ee, policy, values)
        shares = taken.bincount(minlength=ee.num_exits + 1).double() / len(taken)
        point[split] = {
            "cost": float((shares * torch.tensor(costs, dtype=torch.float64)).sum()),
            "accuracy": float(values.is_correct(taken).double().mean()),
            "shares": [round(share, 4) for share in shares.tolist()],
        }
    return point


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of logits (n, classes)."""
    return float((logits.argmax(1) == labels).double().mean())


def within_cost(points: list[dict[str, Any]], cost: float) -> dict[str, Any] | None:
    """Return the point that is most accurate on the calibration split within a mean cost there."""
    found = [point for point in points if point["calibration"]["cost"] <= cost + 1e-9]
    return max(found, key=lambda point: point["calibration"]["accuracy"], default=None)


def within_drop(
    points: list[dict[str, Any]], baseline: float, drop: float
) -> dict[str, Any] | None:
    """Return the cheapest point within a drop, both on the calibration split."""
    limit = baseline - drop - 1e-9
    found = [point for point in points if point["calibration"]["accuracy"] >= limit]
    return min(found, key=lambda point: point["calibration"]["cost"], default=None)


def chosen_points(
    points: list[dict[str, Any]], at_cost: float | None, at_drop: float | None, baseline: float
) -> list[dict[str, Any]]:
    """Return the points of a method's own rule that are chosen for a cost and for a drop.

    Args:
        points: of both rules.
        at_cost: mean cost; None chooses none for it.
        at_drop: drop in accuracy; None chooses none for it.
        baseline: accuracy on the calibration split that drops are measured from.
    """
    own = [point for point in points if point["rule"] == "own"]
    chosen = [
        None if at_cost is None else within_cost(own, at_cost),
        None if at_drop is None else within_drop(own, baseline, at_drop),
    ]
    return [point for point in chosen if point is not None]
