"""What every exit says of a set of images, and thresholds for a budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.evaluation.records import Records, read_by, record, who_leaves_where
from leenet_fx.parts.policies import Policy, ThresholdPolicy
from leenet_fx.parts.thresholds import get_solver
from leenet_fx.surgery.model import EarlyExitModule, device_of, final_classifier
from leenet_fx.training.cache import FeatureCache, cache_features
from leenet_fx.training.evidence import evidence_of, evidence_of_cache, gate_logits, joined


@dataclass(frozen=True)
class Said:
    """What every outlet says of n samples.

    Attributes:
        logits: N+1 tensors (n, classes).
        evidence: for each exit what its gate judges by, (n, k).
        labels: (n,); −1 where there are none.
    """

    logits: tuple[Tensor, ...]
    evidence: tuple[Tensor, ...]
    labels: Tensor

    def gates(self, ee: EarlyExitModule, alpha: float | None) -> Tensor:
        """Gate logits (n, N) of a network whose classifiers said this."""
        with torch.no_grad():
            return gate_logits(ee.exits.branches(), self.evidence, alpha)

    def right(self, outlet: Tensor) -> Tensor:
        """(n,) whether the answer at an outlet each, (n,), is right."""
        everywhere = torch.stack([at.argmax(1) for at in self.logits], 1)
        there = everywhere.gather(1, outlet.unsqueeze(1)).squeeze(1)
        return there == self.labels


@torch.no_grad()
def ask(ee: EarlyExitModule, kept: FeatureCache) -> Said:
    """Asks every exit about images whose features were kept; the backbone does not run."""
    kept.check(ee)
    labels = kept.labels.to(device_of(ee))
    whole = evidence_of_cache(ee, kept)
    if whole is not None:
        first = whole if kept.rows == len(kept) else whole.at(torch.arange(len(kept)))
        return Said(first.logits, first.evidence, labels)
    branches = list(ee.exits.branches())
    batches = list(kept.in_order(device_of(ee), final=final_classifier(ee)))
    found = joined([evidence_of(branches, rows) for rows in batches])
    return Said(found.logits, found.evidence, labels)


def replay(ee: EarlyExitModule, kept: FeatureCache) -> Records:
    """What the network would do with images whose features were kept; the backbone does not run.

    Raises:
        InputError: the cache is of another network.
    """
    said = ask(ee, kept)
    return record(said.logits, leaves_at(ee, ee.policy, said), said.labels)


def confidences(ee: EarlyExitModule, policy: Policy, said: Said) -> Tensor:
    """(n, N) how ready each sample is to leave at each exit, on the policy's own scale."""
    gates = said.gates(ee, policy.alpha)
    return torch.stack(
        [
            policy.confidence(index, read_by(policy, index, said.logits, gates))
            for index in range(ee.num_exits)
        ],
        1,
    )


def leaves_at(ee: EarlyExitModule, policy: Policy, said: Said) -> Tensor:
    """(n,) where each sample leaves under a policy."""
    return who_leaves_where(policy, said.logits, said.gates(ee, policy.alpha))


def rising(ee: EarlyExitModule, cost: str = "flops") -> tuple[float, ...]:
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
    costs = rising(ee, cost)
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
