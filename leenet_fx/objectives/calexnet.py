"""Distillation of each exit on the samples that reach it.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.objectives.base import (
    BatchOutputs,
    Objective,
    is_finite_number,
    register_objective,
    require_option,
)


@register_objective("calexnet")
@dataclass(frozen=True)
class CalexNet(Objective):
    """Σ_{i<N} mean wᵢ·T²·KL(softmax(ŷ_N/T) ‖ softmax(ŷᵢ/T)) (CalexNet, Aperstein & Apartsin 2026).

    The weight of a sample at exit i is its soft probability of surviving to it, held constant:
    wᵢ ∝ Π_{j<i} (1 − σ((max pⱼ − c)/s)), with a mean of 1 over the batch. So each exit is trained
    on the distribution that it meets in use, without a hard filter. The paper's numbers were not
    available for c and s.

    Attributes:
        temperature: T > 0.
        confidence: c, the largest class probability at which a sample exits with probability ½.
        softness: s > 0.

    Raises:
        InputError: an option is out of range.
    """

    name = "calexnet"
    uses = frozenset()
    temperature: float = 2.0
    confidence: float = 0.9
    softness: float = 0.05

    def __post_init__(self) -> None:
        for option in ("temperature", "softness"):
            value = getattr(self, option)
            require_option(is_finite_number(value) and value > 0, option, "a number > 0", value)
        fits = is_finite_number(self.confidence) and 0 <= self.confidence <= 1
        require_option(fits, "confidence", "a number in [0, 1]", self.confidence)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        *students, final = [(at / self.temperature).log_softmax(1) for at in outputs.logits]
        teacher = final.detach()
        survival = torch.ones_like(teacher[:, 0])
        total = torch.zeros_like(survival[0])
        for logits, student in zip(outputs.logits, students, strict=False):
            divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
            weights = survival / survival.mean().clamp(min=1e-6)
            total = total + self.temperature**2 * (weights * divergence).mean()
            largest = logits.detach().softmax(1).amax(1)
            survival = survival * torch.sigmoid((self.confidence - largest) / self.softness)
        return total
