"""JEI-DNN's policy: gates whose probabilities add up over exits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leenet_fx.policies.base import register_policy
from leenet_fx.policies.threshold import ThresholdPolicy


@register_policy("cumulative-gate")
class CumulativeGate(ThresholdPolicy):
    """Exit iff Pᵢ / Π_{j<i}(1 − Aⱼ) ≥ Tᵢ (JEI-DNN, Regol et al. 2024).

    Pᵢ = max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)) is the probability of exiting at i, as in the training of
    the heads, and Aᵢ = Pᵢ / Π_{j<i}(1 − Aⱼ) that of a sample that arrives there; the product is
    1 − Σ_{j<i} Pⱼ. Where it is 0, every sample exits.
    """

    name = "cumulative-gate"
    reads = "gate-history"

    def __init__(self, thresholds: float | Sequence[float] = 0.5) -> None:
        super().__init__(thresholds)

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        opens = scores.float().sigmoid().squeeze(2)
        own = opens[:, -1]
        remaining = (1 - (opens.sum(1) - own)).clamp(min=0)
        reached = remaining > 1e-6
        share = torch.minimum(own, remaining) / torch.where(reached, remaining, 1.0)
        return torch.where(reached, share, 1.0)
