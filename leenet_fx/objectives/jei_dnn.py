"""The two alternating losses of JEI-DNN.

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


@register_objective("jei-dnn-heads")
@dataclass(frozen=True)
class JEIDNNHeads(Objective):
    """mean Σᵢ Pᵢ·CEᵢ over i = 0..N, gates held constant (JEI-DNN, Regol et al. 2024).

    Pᵢ = max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)), and the rest of the probability is the final classifier's.
    Unlike in qᵢ, the gates' probabilities add up until they reach 1. The authors' code rescales
    each sample's weighted losses to the sum of the unweighted ones; the paper's formula, used here,
    does not.
    """

    name = "jei-dnn-heads"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        opens = outputs.gate_logits.detach().sigmoid()
        remaining = F.pad(1 - opens.cumsum(1), (1, 0), value=1.0)
        weights = torch.minimum(F.pad(opens, (0, 1), value=1.0), remaining).clamp(min=0)
        return (weights * outputs.losses).sum(1).mean()


@register_objective("jei-dnn-gates")
@dataclass(frozen=True)
class JEIDNNGates(Objective):
    """BCE of the gates, mean over samples and exits (JEI-DNN, Regol et al. 2024).

    The target of a gate is 1 at the sample's best exit, argminᵢ(CEᵢ + λ·cᵢ), and at all later
    exits. The losses are held constant; `BatchOutputs.cost_weight` is λ. As in the authors' code,
    targets of 1 are weighted by the ratio of zeros to ones in the batch, up to a limit; here not in
    batches without zeros.

    Attributes:
        max_positive_weight: the limit, at least 0.

    Raises:
        InputError: the limit is not a finite number ≥ 0.
    """

    name = "jei-dnn-gates"
    uses = frozenset({"labels", "gates"})
    max_positive_weight: float = 5.0

    def __post_init__(self) -> None:
        fits = is_finite_number(self.max_positive_weight) and self.max_positive_weight >= 0
        require_option(fits, "max_positive_weight", "a number ≥ 0", self.max_positive_weight)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        gate_logits = outputs.gate_logits
        exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
        target = (outputs.best_exit.unsqueeze(1) <= exits).to(gate_logits.dtype)
        ones = target.sum()
        zeros = target.numel() - ones
        # Without zeros there is nothing to balance, and a weight of 0 would stop the training.
        ratio = torch.where(zeros > 0, zeros / ones.clamp(min=1), 1)
        weight = ratio.clamp(max=self.max_positive_weight)
        return F.binary_cross_entropy_with_logits(gate_logits, target, pos_weight=weight)
