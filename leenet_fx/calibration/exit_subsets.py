"""Networks of which some exits are enabled: their costs, and which exits pay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from leenet_fx.calibration.budgets import budget_thresholds
from leenet_fx.calibration.risk_control import budget_path
from leenet_fx.calibration.searched import SEARCHED
from leenet_fx.calibration.solvers import exit_indices_at
from leenet_fx.errors import InputError
from leenet_fx.policies import ThresholdPolicy
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.prune import named_exits

MAX_EXTRA = 0.001
"""Mean cost, relative to the backbone, that removing exits that hardly pay may add in total."""

STEPS = 50
"""Number of thresholds that are compared."""


class SubsetCosts:
    """Costs of samples if only some exits of a network are enabled.

    Args:
        ee: the network.
        policy: decides at the exits.
        kind: of cost.
    """

    def __init__(self, ee: EarlyExitModule, policy: ThresholdPolicy, kind: str) -> None:
        self.ee, self.policy, self.kind = ee, policy, kind
        self.names = ee.spec.placement.names

    def rows(self, exits: Iterable[int]) -> tuple[float, ...]:
        """Return N+1 relative costs, with some exits enabled."""
        enabled = set(exits)
        # Any finite confidence enables an exit; 1 is one that every policy takes.
        values = [1.0 if i in enabled else math.inf for i in range(self.ee.num_exits)]
        return self.ee.costs_for(self.policy.with_confidence(values)).relative(self.kind)

    def monotone(self, exits: Sequence[int]) -> tuple[float, ...]:
        """Return the costs of some exits and the final classifier, non-decreasing for solvers."""
        rows = self.rows(exits)
        return tuple(accumulate((*(rows[index] for index in exits), rows[-1]), max))

    def branch(self, index: int) -> float:
        """Return the cost of passing an exit."""
        return max(0.0, self.rows([index])[-1] - self.rows([])[-1])

    def mean(self, scores: Tensor, threshold: float, exits: Sequence[int]) -> float:
        """Return the mean cost of samples with confidences (n, N)."""
        rows = torch.tensor(self.rows(exits), dtype=torch.float64)
        return float(rows[exits_of(scores, threshold, exits)].mean())


def can_select(ee: EarlyExitModule, policy: ThresholdPolicy) -> bool:
    """Return whether the decision at each exit depends on its own outputs only."""
    alone = not any(branch.reads_previous_logits for branch in ee.exits.branches())
    return alone and not policy.reads_history


def exits_of(scores: Tensor, threshold: float, exits: Iterable[int]) -> Tensor:
    """Return the exit of each sample (n,) if only some exits are enabled."""
    enabled = set(exits)
    number = scores.shape[1]
    limits = [threshold if index in enabled else math.inf for index in range(number)]
    return exit_indices_at(scores, limits)


def common_thresholds(scores: Tensor, costs: Sequence[float]) -> list[float]:
    """Return common thresholds from the safest to the cheapest."""
    return [thresholds[0] for thresholds in budget_path(scores, costs, steps=STEPS)]


def cheapest_threshold(
    scores: Tensor, losses: Tensor, thresholds: Sequence[float], limit: float
) -> float:
    """Return the lowest common threshold with a mean loss of at most a limit.

    Args:
        scores: (n, N).
        losses: (n, N+1) relative to the final classifier.
        thresholds: from the safest to the cheapest.
        limit: highest mean loss; the safest threshold is returned if none meets it.
    """
    best = thresholds[0]
    for threshold in thresholds:
        exits = exit_indices_at(scores, [threshold] * scores.shape[1])
        if float(losses.gather(1, exits.unsqueeze(1)).double().mean()) <= limit:
            best = threshold
    return best


def worthwhile(
    scores: Tensor, threshold: float, costs: SubsetCosts, max_extra: float = MAX_EXTRA
) -> list[int]:
    """Return the fewest exits whose mean cost is hardly above that of all, at one threshold.

    Exits are removed one by one, each time the one without which the mean cost is the lowest, as
    long as it exceeds the lowest found by at most `max_extra`. Labels are not read.

    Args:
        scores: confidences (n, N).
        threshold: of all exits.
        costs: of the network.
        max_extra: relative to the backbone.

    Returns:
        Indices in order, at least one.
    """
    kept = list(range(scores.shape[1]))
    lowest = costs.mean(scores, threshold, kept)
    while len(kept) > 1:
        options = []
        for index in kept:
            remaining = [other for other in kept if other != index]
            options.append((costs.mean(scores, threshold, remaining), remaining))
        cost, remaining = min(options)
        if cost > lowest + max_extra:
            break
        lowest, kept = min(lowest, cost), remaining
    return kept


def given_exits(
    ee: EarlyExitModule,
    policy: ThresholdPolicy,
    exits: str | Sequence[int | str] | None,
    solver: str,
) -> list[int] | None:
    """Return the exits that `calibrate` shall use; None if they are to be chosen.

    Args:
        ee: the network.
        policy: decides at the exits.
        exits: "auto", "all", a list of indices or names, or None for the network's default.
        solver: name of the threshold solver.

    Raises:
        InputError: exits that cannot be chosen or are not there.
        UnknownNameError: no exit of that name.
    """
    selectable = can_select(ee, policy) and solver not in SEARCHED
    if exits is None:
        exits = "auto" if selectable and ee.spec.placement.strategy == "auto" else "all"
    if exits == "all":
        return list(range(ee.num_exits))
    if solver in SEARCHED:
        raise InputError(
            f"exits={exits!r} is for the solvers 'common' and 'exponential'; '{solver}' itself "
            "disables exits that it does not use."
        )
    if exits != "auto":
        return named_exits(ee, exits)
    if not selectable:
        raise InputError(
            f"exits='auto' needs exits whose decisions are independent of each other; with "
            f"{policy!r} and branches of '{ee.spec.branch}' they are not: take exits='all'."
        )
    return None


def selected_for_risk(
    scores: Tensor, losses: Tensor, limit: float, costs: SubsetCosts
) -> list[int]:
    """Return the exits that pay where a risk is about at its limit.

    Args:
        scores: confidences (n, N) of samples that certify nothing.
        losses: (n, N+1) of them.
        limit: of the risk.
        costs: of the network.
    """
    everything = range(scores.shape[1])
    thresholds = common_thresholds(scores, costs.monotone(everything))
    return worthwhile(scores, cheapest_threshold(scores, losses, thresholds, limit), costs)


def selected_for_budget(
    policy: ThresholdPolicy, scores: Tensor, budget: float, costs: SubsetCosts
) -> list[int]:
    """Return the exits that pay at a budget.

    Args:
        policy: of the network.
        scores: confidences (n, N).
        budget: highest mean cost.
        costs: of the network.

    Raises:
        InputError: the budget is below the cost of the first exit.
    """
    everything = list(range(scores.shape[1]))
    thresholds = budget_thresholds(policy, scores, costs.monotone(everything), budget)
    kept = worthwhile(scores, thresholds[0], costs)
    return kept if costs.monotone(kept)[0] <= budget else everything


def spread(thresholds: Sequence[float], exits: Sequence[int], number: int) -> list[float]:
    """Return thresholds of all exits; those of the exits that are not listed are infinite.

    Args:
        thresholds: on the scale of confidences, one for each listed exit.
        exits: their indices.
        number: N.
    """
    values = dict(zip(exits, thresholds, strict=True))
    return [values.get(index, math.inf) for index in range(number)]


def savings(scores: Tensor, thresholds: Sequence[float], costs: SubsetCosts) -> tuple[float, ...]:
    """Return for each exit by how much the mean cost would rise without it; 0 if it is not used.

    Args:
        scores: confidences (n, N).
        thresholds: N, of confidences.
        costs: of the network.
    """

    def mean(limits: Sequence[float]) -> float:
        used = [index for index, value in enumerate(limits) if value != math.inf]
        rows = torch.tensor(costs.rows(used), dtype=torch.float64)
        return float(rows[exit_indices_at(scores, limits)].mean())

    total = mean(thresholds)
    without = [
        [math.inf if other == index else value for other, value in enumerate(thresholds)]
        for index in range(len(thresholds))
    ]
    return tuple(
        0.0 if value == math.inf else mean(limits) - total
        for value, limits in zip(thresholds, without, strict=True)
    )
