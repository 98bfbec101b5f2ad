"""Objectives: what training minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of each sample at each exit.

    Args:
        logits: N+1 tensors (B, classes).
        labels: (B,) class indices.

    Returns:
        (B, N+1).
    """
    return torch.stack([F.cross_entropy(at, labels, reduction="none") for at in logits], 1)


def exit_log_probabilities(gates: Tensor) -> Tensor:
    """log qᵢ, the log probability that a sample leaves at i: qᵢ = gᵢ · Π_{j<i}(1−gⱼ), g_N = 1.

    Computed from the gate logits without forming g, so it is exact at g → 0 and g → 1.

    Args:
        gates: gate logits (B, N).

    Returns:
        (B, N+1).
    """
    opens = F.pad(F.logsigmoid(gates), (0, 1))
    passes = F.pad(F.logsigmoid(-gates).cumsum(1), (1, 0))
    return opens + passes


def leenet_loss(losses: Tensor, gates: Tensor, costs: Tensor, alpha: float) -> Tensor:
    """L = (1−α) · mean Σᵢ qᵢ·CEᵢ + α · mean Σᵢ qᵢ·cᵢ, sums over i = 0..N (LEENet).

    The published formula leaves the final classifier out of the first sum; it is included here, for
    without it never leaving costs no error.

    Args:
        losses: CE of each sample at each exit (B, N+1).
        gates: gate logits (B, N).
        costs: relative cost of leaving at each exit (N+1,).
        alpha: weight of the cost, in [0, 1].

    Returns:
        A scalar.
    """
    per_exit = (1 - alpha) * losses + alpha * costs
    return (exit_log_probabilities(gates).exp() * per_exit).sum(1).mean()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 for which softmax(ŷ/T) has the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,) class indices.
    """
    logits = logits.detach().double()
    low, high = math.log(0.05), math.log(20.0)
    # The cross-entropy is convex in 1/T, so its one minimum is found by bisecting its slope.
    chosen = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    for _ in range(40):
        middle = (low + high) / 2
        expected = (logits * (logits / math.exp(middle)).softmax(1)).sum(1)
        # The slope in 1/T: what the model expects of its logits, less what it gets.
        if float((expected - chosen).mean()) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
