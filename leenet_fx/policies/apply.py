"""Application of a policy to the outputs of all exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leenet_fx.policies.base import Policy


def exit_indices(policy: Policy, logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """Return the exit of each sample, given the outputs of all exits for all samples.

    Args:
        policy: decides which samples exit early.
        logits: class logits of N exits and the final classifier, N+1 tensors (B, classes).
        gate_logits: (B, N).

    Returns:
        (B,) exit indices; N is the final classifier.
    """
    count = len(logits) - 1
    exit_index = torch.full((len(gate_logits),), count, device=gate_logits.device)
    for index in reversed(range(count)):
        if policy.disables(index):
            continue
        scores = policy_scores(policy, index, logits, gate_logits)
        exit_index = torch.where(policy.should_exit(index, scores), index, exit_index)
    return exit_index


def evaluated_exits(policy: Policy, reads_previous: Sequence[bool]) -> tuple[bool, ...]:
    """Return for each exit whether its branch is evaluated in conditional execution.

    A branch is evaluated if samples can exit there, or if a later one that is evaluated, or the
    decision there, reads its logits.

    Args:
        policy: decides which samples exit early.
        reads_previous: N, whether the branch of each exit reads the logits of earlier exits.
    """
    evaluated: list[bool] = []
    is_read = False
    for index in reversed(range(len(reads_previous))):
        evaluated.append(is_read or not policy.disables(index))
        is_read |= evaluated[-1] and (policy.reads_history or reads_previous[index])
    return tuple(reversed(evaluated))


def computed_states(evaluated: Sequence[bool]) -> tuple[bool, ...]:
    """Return for each exit whether its state is computed, in networks whose exits carry one.

    A state is computed if the branch, or that of any later exit, is evaluated.

    Args:
        evaluated: N, whether each branch is evaluated.
    """
    return tuple(any(evaluated[index:]) for index in range(len(evaluated)))


def policy_scores(
    policy: Policy, index: int, logits: Sequence[Tensor], gate_logits: Tensor
) -> Tensor:
    """Return the scores that a policy reads at exit `index`; see `Policy.should_exit`.

    Args:
        policy: reads gate logits, class logits or the history of either.
        index: of the exit.
        logits: class logits, tensors (B, classes).
        gate_logits: (B, N).
    """
    if policy.reads == "history":
        return torch.stack(list(logits[: index + 1]), 1)
    if policy.reads == "gate-history":
        return gate_logits[:, : index + 1].unsqueeze(2)
    return logits[index] if policy.reads == "logits" else gate_logits[:, index]
