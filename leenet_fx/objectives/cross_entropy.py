"""Weighted sums of cross-entropies over exits and the final classifier.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.objectives.base import (
    BatchOutputs,
    Objective,
    is_finite_number,
    register_objective,
    require_option,
)
from leenet_fx.objectives.functional import exit_losses


@register_objective("exits")
@dataclass(frozen=True)
class SumOfExits(Objective):
    """Σ_{i<N} mean CEᵢ (LEENet). On a frozen backbone, exits share no parameter in this sum."""

    name = "exits"
    reads_final = False

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        exits = outputs.logits[: outputs.gate_logits.shape[1]]
        return exit_losses(exits, outputs.labels).mean(0).sum()


@register_objective("final")
@dataclass(frozen=True)
class FinalClassifier(Objective):
    """mean CE_N, the final classifier alone."""

    name = "final"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return outputs.losses[:, -1].mean()


@register_objective("branchynet")
@dataclass(frozen=True)
class BranchyNet(Objective):
    """Σᵢ wᵢ · mean CEᵢ over i = 0..N (BranchyNet, Teerapittayanon et al. 2016).

    Attributes:
        exit_weights: wᵢ ≥ 0 of each exit and the final classifier. None: 1 for each exit and 0.3
            for the final classifier, with which the paper reports 1 point higher accuracy than with
            equal weights.

    Raises:
        InputError: a weight is not a finite number ≥ 0; when called, their number is not N+1.
    """

    name = "branchynet"
    exit_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.exit_weights is None:
            return
        fits = isinstance(self.exit_weights, (tuple, list)) and all(
            is_finite_number(weight) and weight >= 0 for weight in self.exit_weights
        )
        expected = "numbers ≥ 0, one per exit and one for the final classifier, or None"
        require_option(fits, "exit_weights", expected, self.exit_weights)
        # Options read from a file are lists, and a frozen dataclass must be hashable.
        object.__setattr__(self, "exit_weights", tuple(self.exit_weights))

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        num_exits = len(outputs.logits) - 1
        weights = (1.0,) * num_exits + (0.3,) if self.exit_weights is None else self.exit_weights
        if len(weights) != num_exits + 1:
            raise InputError(
                f"BranchyNet has {len(weights)} exit weights, but the network has {num_exits} "
                f"exits and the final classifier: give {num_exits + 1} weights."
            )
        return (outputs.losses.new_tensor(weights) * outputs.losses.mean(0)).sum()


@register_objective("shallow-deep")
@dataclass(frozen=True)
class ShallowDeep(Objective):
    """Σ_{i<N} τᵢ · mean CEᵢ + mean CE_N (Shallow-Deep Networks, Kaya et al. 2019).

    τᵢ = 0.01 + `BatchOutputs.progress` · (min(cᵢ, 1) − 0.01) rises from 0.01, so that early exits
    hardly affect the backbone at first, to the exit's relative cost.
    """

    name = "shallow-deep"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        tau = 0.01 + outputs.progress * (outputs.costs[:-1].clamp(max=1) - 0.01)
        losses = outputs.losses.mean(0)
        return (tau * losses[:-1]).sum() + losses[-1]


@register_objective("pabee")
@dataclass(frozen=True)
class DepthWeighted(Objective):
    """Σᵢ (i+1) · mean CEᵢ / Σᵢ (i+1) over i = 0..N (PABEE, Zhou et al. 2020)."""

    name = "pabee"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        losses = outputs.losses.mean(0)
        depth = torch.arange(1, len(losses) + 1, device=losses.device)
        return (depth * losses).sum() / depth.sum()


@register_objective("boostnet")
@dataclass(frozen=True)
class BoostNet(Objective):
    """Σᵢ mean CEᵢ / (N+1−i) over i = 0..N (BoostNet, Yu et al. 2023).

    The loss at i, value and gradient, is divided by the number of classifiers from i to the end.
    The authors' code applies the same factors inside the backbone: a block receives the mean of the
    gradients of all later classifiers, and classifiers receive theirs undivided. An objective is a
    function of logits and cannot do that; on a frozen backbone, where exits share no parameter, the
    two differ only in the effective learning rate of each classifier.

    The logits are already additive, each the head's own plus the detached logits of the previous
    exit; see `leenet_fx.parts.heads.AdditiveHead`.
    """

    name = "boostnet"

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        losses = outputs.losses.mean(0)
        remaining = torch.arange(len(losses), 0, -1, device=losses.device)
        return (losses / remaining).sum()
