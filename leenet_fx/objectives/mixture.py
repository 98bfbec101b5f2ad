"""Expected error and cost under the gates' exit probabilities.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leenet_fx.objectives.base import BatchOutputs, Objective, register_objective
from leenet_fx.objectives.functional import (
    leenet_loss,
    mixture_costs,
    mixture_log_probabilities,
)


@register_objective("leenet")
@dataclass(frozen=True)
class LEENet(Objective):
    """(1−α) · mean Σᵢ qᵢ·CEᵢ + α · mean Σᵢ qᵢ·cᵢ, sums over i = 0..N (LEENet).

    `BatchOutputs.cost_weight` is α, in [0, 1]. See `leenet_fx.objectives.leenet_loss`.
    """

    name = "leenet"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return leenet_loss(outputs.losses, outputs.gate_logits, outputs.costs, outputs.cost_weight)


@register_objective("diffbranch")
@dataclass(frozen=True)
class DifferentiableBranching(Objective):
    """mean CE(Ŷ₀) + λ · mean C₀ (differentiable branching, Scardapane et al. 2020).

    The paper writes f̃₀ and γ̃₀ for the mixtures Ŷ₀ and C₀. `BatchOutputs.cost_weight` is λ.
    """

    name = "diffbranch"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return mixture_losses(outputs)[:, 0].mean()


@register_objective("pteenet")
@dataclass(frozen=True)
class PTEEnet(Objective):
    """Σ_{i<N} mean [CE(Ŷᵢ) + λ·Cᵢ] (PTEEnet, Lahiany & Aperstein 2022).

    `BatchOutputs.cost_weight` is λ. In the paper, labels are the arg-max of the final classifier.
    """

    name = "pteenet"
    uses = frozenset({"labels", "gates"})

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return mixture_losses(outputs)[:, :-1].mean(0).sum()


def mixture_losses(outputs: BatchOutputs) -> Tensor:
    """Compute CE(Ŷᵢ) + λ·Cᵢ of each sample (B, N+1)."""
    log_mixtures = mixture_log_probabilities(outputs.logits, outputs.gate_logits)
    labels = outputs.labels.view(-1, 1, 1).expand(-1, log_mixtures.shape[1], 1)
    losses = -log_mixtures.gather(2, labels).squeeze(2)
    costs = mixture_costs(outputs.gate_logits, outputs.costs)
    return losses + outputs.broadcast_cost_weight * costs
