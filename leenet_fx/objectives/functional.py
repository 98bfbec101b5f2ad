"""Losses, exit probabilities and mixtures over exits as functions of tensors.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the cross-entropy of each sample at each exit and the final classifier.

    Args:
        logits: N+1 tensors (B, classes).
        labels: class indices (B,).

    Returns:
        (B, N+1).
    """
    return torch.stack([F.cross_entropy(at, labels, reduction="none") for at in logits], 1)


def exit_log_probabilities(gate_logits: Tensor) -> Tensor:
    """Compute log qᵢ, the log probability of exiting at i: qᵢ = gᵢ · Π_{j<i}(1−gⱼ), g_N = 1.

    Computed from the gate logits without forming g, hence exact for g → 0 and g → 1.

    Args:
        gate_logits: (B, N).

    Returns:
        (B, N+1).
    """
    log_open = F.pad(F.logsigmoid(gate_logits), (0, 1))
    log_reach = F.pad(F.logsigmoid(-gate_logits).cumsum(1), (1, 0))
    return log_open + log_reach


def mixture_log_probabilities(logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """Compute log Ŷᵢ for each class: Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁, Ŷ_N = p_N.

    At i = 0 this is the soft output of differentiable branching (Scardapane et al. 2020). Computed
    in log space, hence exact for g → 0 and g → 1.

    Args:
        logits: N+1 tensors (B, classes).
        gate_logits: (B, N).

    Returns:
        (B, N+1, classes).
    """
    log_p = [at.log_softmax(1) for at in logits]
    log_open = F.logsigmoid(gate_logits).unsqueeze(2)
    log_pass = F.logsigmoid(-gate_logits).unsqueeze(2)
    mixtures = log_p[-1:]
    for i in reversed(range(gate_logits.shape[1])):
        mixture = torch.logaddexp(log_open[:, i] + log_p[i], log_pass[:, i] + mixtures[-1])
        mixtures.append(mixture)
    return torch.stack(mixtures[::-1], 1)


def soft_probabilities(logits: Sequence[Tensor], gate_logits: Tensor) -> Tensor:
    """Compute f̃₀ = Σ qᵢ·pᵢ, the ensemble of all exits and the final classifier.

    The soft prediction of differentiable branching (Scardapane et al. 2020); it costs a pass
    through the whole network.

    Args:
        logits: N+1 tensors (B, classes), as `ee.all_exits(images).logits`.
        gate_logits: (B, N), as `ee.all_exits(images).gate_logits`.

    Returns:
        (B, classes).
    """
    return mixture_log_probabilities(logits, gate_logits)[:, 0].exp()


def mixture_costs(gate_logits: Tensor, costs: Tensor) -> Tensor:
    """Compute Cᵢ, the expected cost of a sample that reaches exit i.

    Cᵢ = gᵢ·cᵢ + (1−gᵢ)·Cᵢ₊₁, C_N = c_N.

    Args:
        gate_logits: (B, N).
        costs: relative cost of each exit and the final classifier (N+1,).

    Returns:
        (B, N+1).
    """
    opens = gate_logits.sigmoid()
    mixtures = [costs[-1].expand(gate_logits.shape[0])]
    for i in reversed(range(gate_logits.shape[1])):
        mixtures.append(opens[:, i] * costs[i] + (1 - opens[:, i]) * mixtures[-1])
    return torch.stack(mixtures[::-1], 1)


def leenet_loss(
    losses: Tensor, gate_logits: Tensor, costs: Tensor, alpha: float | Tensor
) -> Tensor:
    """Compute L = (1−α) · mean Σᵢ qᵢ·CEᵢ + α · mean Σᵢ qᵢ·cᵢ, sums over i = 0..N (LEENet).

    The published formula omits the final classifier from the first sum. It is included here:
    without it, a sample that never exits early would contribute no error.

    Args:
        losses: CE of each sample at each exit and the final classifier (B, N+1).
        gate_logits: (B, N).
        costs: relative cost of each exit and the final classifier (N+1,).
        alpha: cost weight in [0, 1], one number or one per sample (B,).

    Returns:
        A scalar.
    """
    if isinstance(alpha, Tensor):
        alpha = alpha.reshape(-1, 1)
    per_exit = (1 - alpha) * losses + alpha * costs
    return (exit_log_probabilities(gate_logits).exp() * per_exit).sum(1).mean()
