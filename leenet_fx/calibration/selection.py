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
from leenet_fx.calibration.budgets import policy_with_thresholds
from leenet_fx.calibration.cached_outputs import CachedOutputs, confidences, outputs_of_data
from leenet_fx.calibration.exit_subsets import (
    SubsetCosts,
    can_select,
    cheapest_threshold,
    common_thresholds,
    exits_of,
    worthwhile,
)
from leenet_fx.calibration.risks import get_risk
from leenet_fx.errors import InputError, placement_errors
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.surgery.module import EarlyExitModule

EXACT_UP_TO = 12
"""Number of exits up to which the best ones of a given number are searched for exactly."""


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
    data: Iterable[Any] | FeatureCache | CachedOutputs,
    num_exits: int | None = None,
    *,
    max_drop: float = 0.01,
    cost: str = "flops",
) -> ExitSelection:
    """Choose the exits of a fitted network that pay, from the outputs of all of them.

    With `num_exits`, the ones with the lowest mean cost whose accuracy on `data` is at most
    `max_drop` below the backbone's, under a common threshold (`placement.select_exits`: all
    subsets are compared for up to 12 exits, else exits are added one by one). Without, the fewest
    with which the mean cost is at most 0.1 % of the backbone's above that of all exits, at the
    cheapest threshold that keeps `max_drop`.

    Choosing among many subsets is optimistic on the images it is done on: certify on other images,
    as `calibrate` does for networks that were attached with strategy="auto".

    Args:
        ee: a fitted network whose policy looks at one exit alone.
        data: images and labels on which nothing was fitted; or a feature cache of them, or their
            outputs.
        num_exits: number of exits to keep; None for those that pay.
        max_drop: highest accepted loss of accuracy, as a fraction.
        cost: "flops", "params", "bytes", or "seconds" as `leenet_fx.profile` measured.

    Raises:
        InputError: the decision at an exit depends on other exits; `num_exits` for exits that pass
            on a state; values out of range.
        PlacementError: no choice of this number of exits is accurate enough.
        UnknownNameError: no such cost.
    """
    policy = policy_with_thresholds(ee)
    if not can_select(ee, policy):
        raise InputError(
            f"With the policy {policy!r} and branches of {ee.spec.branch!r}, the decision at an "
            "exit depends on other exits, so exits cannot be chosen from outputs of all of them."
        )
    if num_exits is not None and any(branch.carries_state for branch in ee.exits.branches()):
        raise InputError(
            "Exits that pass on a state share its cost, so costs of single exits do not add up to "
            f"those of {num_exits!r} exits: leave num_exits out."
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
