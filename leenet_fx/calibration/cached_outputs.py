"""What every exit says of a set of images whose features were kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.calibration.gate_inputs import (
    all_gate_logits,
    gate_inputs_of,
    gate_inputs_of_cache,
    joined,
)
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.policies import Policy, exit_indices, policy_scores
from leenet_fx.surgery.module import EarlyExitModule, device_of, final_classifier


@dataclass(frozen=True)
class CachedOutputs:
    """What every outlet says of n samples.

    Attributes:
        logits: N+1 tensors (n, classes).
        evidence: for each exit what its gate judges by, (n, k).
        labels: (n,); −1 where there are none.
    """

    logits: tuple[Tensor, ...]
    gate_inputs: tuple[Tensor, ...]
    labels: Tensor

    def gates(self, ee: EarlyExitModule, alpha: float | None) -> Tensor:
        """Gate logits (n, N) of a network whose classifiers said this."""
        with torch.no_grad():
            return all_gate_logits(ee.exits.branches(), self.gate_inputs, alpha)

    def right(self, outlet: Tensor) -> Tensor:
        """(n,) whether the answer at an outlet each, (n,), is right."""
        everywhere = torch.stack([at.argmax(1) for at in self.logits], 1)
        there = everywhere.gather(1, outlet.unsqueeze(1)).squeeze(1)
        return there == self.labels


@torch.no_grad()
def ask(ee: EarlyExitModule, kept: FeatureCache) -> CachedOutputs:
    """Asks every exit about images whose features were kept; the backbone does not run."""
    kept.check(ee)
    labels = kept.labels.to(device_of(ee))
    whole = gate_inputs_of_cache(ee, kept)
    if whole is not None:
        first = whole if kept.rows == len(kept) else whole.at(torch.arange(len(kept)))
        return CachedOutputs(first.logits, first.gate_inputs, labels)
    branches = list(ee.exits.branches())
    batches = list(kept.in_order(device_of(ee), final=final_classifier(ee)))
    found = joined([gate_inputs_of(branches, rows) for rows in batches])
    return CachedOutputs(found.logits, found.gate_inputs, labels)


def confidences(ee: EarlyExitModule, policy: Policy, outputs: CachedOutputs) -> Tensor:
    """(n, N) how ready each sample is to leave at each exit, on the policy's own scale."""
    gates = outputs.gates(ee, policy.alpha)
    return torch.stack(
        [
            policy.confidence(index, policy_scores(policy, index, outputs.logits, gates))
            for index in range(ee.num_exits)
        ],
        1,
    )


def cached_exit_indices(ee: EarlyExitModule, policy: Policy, outputs: CachedOutputs) -> Tensor:
    """(n,) where each sample leaves under a policy."""
    return exit_indices(policy, outputs.logits, outputs.gates(ee, policy.alpha))
