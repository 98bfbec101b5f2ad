"""The five losses of EENets.

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
    register_objective,
    require_option,
)
from leenet_fx.objectives.mixture import mixture_losses


@register_objective("eenets")
@dataclass(frozen=True)
class EENets(Objective):
    """The losses of EENets (Demir & Akbas 2024), with hᵢ = gᵢ and λ = `BatchOutputs.cost_weight`.

    - v0: Σᵢ CEᵢ over i = 0..N, the first of two stages.
    - v1: CE(Ŷ₀) + λ·C₀, the second.
    - v2: Σᵢ [CE(Ŷᵢ) + λ·Cᵢ] over i = 0..N.
    - v3: Σᵢ (h̄ᵢ/Σh̄) · (CEᵢ + λ·cᵢ) over i = 0..N, with the batch means h̄ and h̄_N = 1.
    - v4: balanced BCE(h, target) + CE_target + λ·c_target, where target = argminᵢ(CEᵢ + λ·cᵢ) is
      the sample's best exit, held constant.

    Balanced BCE is a sum over exits. At exit i, samples with target i are positives, those with a
    later target negatives; those with an earlier target never reach the exit and are excluded (in
    the authors' code they are negatives). Positives and negatives each have weight one half,
    whatever their number; if one of them is absent, the other has weight 1.

    The authors' code weighs each sample by the share of the other kind in the batch, so that exits
    that are rarely or nearly always best hardly count.

    Attributes:
        version: 0 to 4.
        published_weights: whether version 4 weighs its BCE as the authors' code does.

    Raises:
        InputError: another version, or `published_weights` is not a bool.
    """

    name = "eenets"
    uses = frozenset({"labels", "gates"})
    version: int = 1
    published_weights: bool = False

    def __post_init__(self) -> None:
        fits = type(self.version) is int and 0 <= self.version <= 4
        require_option(fits, "version", "an integer from 0 to 4", self.version)
        fits = isinstance(self.published_weights, bool)
        require_option(fits, "published_weights", "True or False", self.published_weights)

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        if self.version == 0:
            return outputs.losses.mean(0).sum()
        if self.version == 1:
            return mixture_losses(outputs)[:, 0].mean()
        if self.version == 2:
            return mixture_losses(outputs).mean(0).sum()
        if self.version == 3:
            means = F.pad(outputs.gate_logits.sigmoid().mean(0), (0, 1), value=1.0)
            return (means / means.sum() * outputs.penalized_losses.mean(0)).sum()
        target = outputs.best_exit
        at_target = outputs.penalized_losses.gather(1, target.unsqueeze(1))
        bce = published_bce if self.published_weights else balanced_bce
        return bce(outputs.gate_logits, target) + at_target.mean()


def balanced_bce(gate_logits: Tensor, target: Tensor) -> Tensor:
    """Compute the class-balanced binary cross-entropy of the gates; see `EENets`.

    Args:
        gate_logits: (B, N).
        target: exit at which each sample should exit (B,); N is the final classifier.

    Returns:
        A scalar, the sum over exits.
    """
    exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
    positive, negative = target.unsqueeze(1) == exits, target.unsqueeze(1) > exits
    positive_loss = -(positive * F.logsigmoid(gate_logits)).sum(0) / positive.sum(0).clamp(min=1)
    negative_loss = -(negative * F.logsigmoid(-gate_logits)).sum(0) / negative.sum(0).clamp(min=1)
    present = positive.any(0).int() + negative.any(0).int()
    return ((positive_loss + negative_loss) / present.clamp(min=1)).sum()


def published_bce(gate_logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross-entropy of the gates with the weights of the authors' code.

    At each exit, all samples with another target are negatives, the positives have the share of
    negatives as their weight, and the negatives that of positives.

    Args:
        gate_logits: (B, N).
        target: exit at which each sample should exit (B,); N is the final classifier.

    Returns:
        A scalar, the sum over exits.
    """
    exits = torch.arange(gate_logits.shape[1], device=gate_logits.device)
    positive = (target.unsqueeze(1) == exits).to(gate_logits.dtype)
    share = positive.mean(0)
    weight = positive * (1 - share) + (1 - positive) * share
    losses = F.binary_cross_entropy_with_logits(gate_logits, positive, weight, reduction="none")
    return losses.mean(0).sum()
