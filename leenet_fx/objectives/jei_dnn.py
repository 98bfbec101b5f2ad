"""The two alternating losses of JEI-DNN.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.objectives.base import BatchOutputs, Objective, register_objective


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
    exits. The losses are held constant; `BatchOutputs.cost_weight` is λ. The authors' code also
    weights targets of 1 by the ratio of zeros to ones in the batch; here all have weight 1.
    """

    name = "jei-dnn-gates"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        gate_logits = outputs.gate_logits
        exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
        target = (outputs.best_exit.unsqueeze(1) <= exits).to(gate_logits.dtype)
        return F.binary_cross_entropy_with_logits(gate_logits, target)
