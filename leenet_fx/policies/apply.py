"""Policies applied to the outputs of all exits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leenet_fx.policies.policy import Policy


def exit_indices(policy: Policy, logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """Where each sample leaves if every exit was computed for all.

    Args:
        policy: who leaves.
        logits: N+1 tensors (B, classes).
        gates: (B, N) gate logits.

    Returns:
        (B,) exit indices; N is the final classifier.
    """
    count = len(logits) - 1
    exit_index = torch.full((len(gate_logits),), count, device=gate_logits.device)
    for index in reversed(range(count)):
        scores = policy_scores(policy, index, logits, gate_logits)
        exit_index = torch.where(policy.should_exit(index, scores), index, exit_index)
    return exit_index


def policy_scores(
    policy: Policy, index: int, logits: Sequence[Tensor], gate_logits: Tensor
) -> Tensor:
    """What a policy reads at an exit: of `logits` (B, classes) each, and `gates` (B, N)."""
    if policy.reads == "history":
        return torch.stack(list(logits[: index + 1]), 1)
    return logits[index] if policy.reads == "logits" else gate_logits[:, index]
