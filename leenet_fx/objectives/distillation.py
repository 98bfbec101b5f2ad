"""Distillation from the final classifier to the exits.

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


@register_objective("distillation")
@dataclass(frozen=True)
class Distillation(Objective):
    """Σ_{i<N} mean [(1−mix)·CEᵢ + mix·T²·KL(softmax(ŷ_N/T) ‖ softmax(ŷᵢ/T))].

    The final classifier is the teacher, held constant, and the exits are the students (Phuong &
    Lampert 2019). T² keeps both gradients at the same scale (Hinton et al. 2015).

    Attributes:
        mix: weight of the teacher, in [0, 1].
        temperature: T > 0.

    Raises:
        InputError: an option is out of range.
    """

    name = "distillation"
    mix: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        fits = is_finite_number(self.mix) and 0 <= self.mix <= 1
        require_option(fits, "mix", "a number in [0, 1]", self.mix)
        fits = is_finite_number(self.temperature) and self.temperature > 0
        require_option(fits, "temperature", "a number > 0", self.temperature)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        *students, final = [(at / self.temperature).log_softmax(1) for at in outputs.logits]
        teacher = final.detach()
        divergence = torch.stack(
            [F.kl_div(at, teacher, reduction="batchmean", log_target=True) for at in students]
        )
        distillation = self.mix * self.temperature**2 * divergence
        if self.mix == 1:
            # Labels may be absent.
            return distillation.sum()
        losses = outputs.losses[:, :-1].mean(0)
        return ((1 - self.mix) * losses + distillation).sum()
