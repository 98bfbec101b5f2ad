"""Which exits of a network pay: from the outputs of all of them on data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

import placement
from leenet_fx import tables
from leenet_fx.calibration.budgets import budget_thresholds, policy_with_thresholds
from leenet_fx.calibration.cached_outputs import confidences, outputs_of_data
from leenet_fx.calibration.risk_control import budget_path
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.solvers import exit_indices_at
from leenet_fx.errors import InputError, placement_errors
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.policies import ThresholdPolicy
from leenet_fx.surgery.module import EarlyExitModule

MAX_EXTRA = 0.005
"""Mean cost, relative to the backbone, that removing exits that hardly pay may add in total."""

EXACT_UP_TO = 12
"""Number of exits up to which the best ones of a given number are searched for exactly."""

STEPS = 50
"""Number of thresholds that are compared."""


@dataclass(frozen=True)
class ExitChoice:
    """Whether an exit stays, and why.

    Attributes:
        index: of the exit.
        name: of the block before it.
        kept: whether it stays.
        share: share of the samples that exit there.
        saving: by how much the mean cost would rise without an exit that stays, or would fall with
            one that does not, at the same threshold.
    """

    index: int
    name: str
    kept: bool
    share: float
    saving: float

    def __str__(self) -> str:
        if self.kept:
            return f"stays: saves {100 * self.saving:.2f} % of the cost"
        if self.saving < 0:
            return f"goes: costs {-100 * self.saving:.2f} % more than it saves"
        return f"goes: would save {100 * self.saving:.2f} % of the cost"


@dataclass(frozen=True)
class ExitSelection:
    """The exits that were chosen. The network is unchanged; see `leenet_fx.prune`.

    Attributes:
        exits: indices of the exits that stay.
        threshold: common confidence threshold at which they were compared.
        accuracy: with these exits, on these samples; optimistic, since they were chosen on them.
        backbone_accuracy: of the final classifier.
        cost: mean cost, relative to the backbone.
        cost_of_all: the same with all exits at the same threshold.
        choices: one for each exit.
    """

    exits: tuple[int, ...]
    threshold: float
    accuracy: float
    backbone_accuracy: float
    cost: float
    cost_of_all: float
    choices: tuple[ExitChoice, ...]

    def __str__(self) -> str:
        table = tables.new_table(
            f"{len(self.exits)} of {len(self.choices)} exits: accuracy {100 * self.accuracy:.2f} % "
            f"(backbone {100 * self.backbone_accuracy:.2f} %), cost {self.cost:.3f}, with all "
            f"exits {self.cost_of_all:.3f}",
            "exit",
            "after",
            "share %",
            "",
            caption=f"At the confidence threshold {self.threshold:.4g}, on the given images.",
        )
        for choice in self.choices:
            table.add_row(str(choice.index), choice.name, f"{100 * choice.share:.1f}", str(choice))
        return tables.render(table)


def select_exits(
    ee: EarlyExitModule,
    data: Iterable[Any] | FeatureCache,
    num_exits: int | None = None,
    *,
    max_drop: float = 0.01,
    cost: str = "flops",
) -> ExitSelection:
    """Choose the exits of a fitted network that pay, from the outputs of all of them.

    With `num_exits`, the ones with the lowest mean cost whose accuracy on `data` is at most
    `max_drop` below the backbone's, under a common threshold (`placement.select_exits`: all
    subsets are compared for up to 12 exits, else exits are added one by one). Without, the fewest
    with which the mean cost is at most 0.5 % of the backbone's above that of all exits, at the
    cheapest threshold that keeps `max_drop`.

    Choosing among many subsets is optimistic on the images it is done on: certify on other images,
    as `calibrate` does for networks that were attached with strategy="auto".

    Args:
        ee: a fitted network whose policy looks at one exit alone.
        data: images and labels on which nothing was fitted; or a feature cache of them.
        num_exits: number of exits to keep; None for those that pay.
        max_drop: highest accepted loss of accuracy, as a fraction.
        cost: "flops", "params", "bytes", or "seconds" as `leenet_fx.profile` measured.

    Raises:
        InputError: the decision at an exit depends on other exits; values out of range.
        PlacementError: no choice of this number of exits is accurate enough.
        UnknownNameError: no such cost.
    """
    policy = policy_with_thresholds(ee)
    if not can_select(ee, policy):
        raise InputError(
            f"With the policy {policy!r} and branches of {ee.spec.branch!r}, the decision at an "
            "exit depends on other exits, so exits cannot be chosen from outputs of all of them."
        )
    if isinstance(max_drop, bool) or not 0 <= max_drop <= 1:
        raise InputError(f"max_drop must be a fraction in [0, 1], got {max_drop!r}.")
    outputs = outputs_of_data(ee, data, labelled=True)
    scores = confidences(ee, policy, outputs)
    losses = get_risk("accuracy-gap").losses(outputs)
    correct = torch.stack([x.argmax(1) == outputs.labels for x in outputs.logits], 1)
    costs = SubsetCosts(ee, policy, cost)
    everything = range(ee.num_exits)
    best = float(correct[:, -1].double().mean())
    thresholds = common_thresholds(scores, costs.monotone(everything))
    if num_exits is None:
        threshold = cheapest_threshold(scores, losses, thresholds, max_drop)
        kept = worthwhile(scores, threshold, costs)
    else:
        branches = [costs.branch(index) for index in everything]
        whole = [costs.rows([index])[index] - branches[index] for index in everything]
        with placement_errors():
            found = placement.select_exits(
                scores.tolist(),
                correct.tolist(),
                list(accumulate([*whole, max(whole[-1], costs.rows([])[-1])], max)),
                branches,
                num_exits,
                min_accuracy=best - max_drop,
                thresholds=[math.inf, *thresholds],
                exact_up_to=EXACT_UP_TO,
            )
        threshold, kept = found.threshold, list(found.indices)
    chosen = exits_of(scores, threshold, kept)
    return ExitSelection(
        exits=tuple(kept),
        threshold=threshold,
        accuracy=float(correct.gather(1, chosen.unsqueeze(1)).double().mean()),
        backbone_accuracy=best,
        cost=costs.mean(scores, threshold, kept),
        cost_of_all=costs.mean(scores, threshold, everything),
        choices=explain(scores, threshold, kept, costs),
    )


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
    return alone and policy.reads != "history"


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


def explain(
    scores: Tensor, threshold: float, kept: Sequence[int], costs: SubsetCosts
) -> tuple[ExitChoice, ...]:
    """Return for each exit whether it stays, and what it saves or would save."""
    number = scores.shape[1]
    total = costs.mean(scores, threshold, kept)
    shares = exits_of(scores, threshold, kept).bincount(minlength=number + 1) / len(scores)
    choices = []
    for index, name in enumerate(costs.names):
        stays = index in kept
        changed = [i for i in range(number) if (i in kept) != (i == index)]
        difference = costs.mean(scores, threshold, changed) - total
        saving = difference if stays else -difference
        choices.append(ExitChoice(index, name, stays, float(shares[index]), saving))
    return tuple(choices)


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
