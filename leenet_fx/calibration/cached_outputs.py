"""What every exit says of a set of images whose features were kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.evaluation.sample_records import Records, read_by, record, who_leaves_where
from leenet_fx.policies.policy import Policy
from leenet_fx.surgery.module import EarlyExitModule, device_of, final_classifier
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.calibration.gate_inputs import evidence_of, evidence_of_cache, gate_logits, joined


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
