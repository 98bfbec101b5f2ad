"""Base of objectives, the batch they are computed on, and their registry.

Notation: see `leenet_fx.objectives`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.objectives.functional import exit_losses
from leenet_fx.registry import Registry


@dataclass(frozen=True)
class BatchOutputs:
    """Outputs of a network with exits for one batch, with labels and costs.

    Attributes:
        logits: class logits of all exits and the final classifier, N+1 tensors (B, classes);
            detached if the classifiers are not trained.
        gate_logits: z, before the sigmoid (B, N).
        labels: class indices (B,).
        costs: cost of each exit and the final classifier, relative to the backbone (N+1,); may
            exceed 1.
        cost_weight: α or λ; one number or one per sample (B,).
        progress: fraction of the epochs that are completed, for schedules of loss weights.
    """

    logits: tuple[Tensor, ...]
    gate_logits: Tensor
    labels: Tensor
    costs: Tensor
    cost_weight: float | Tensor
    progress: float = 1.0

    @cached_property
    def losses(self) -> Tensor:
        """CEᵢ of each sample (B, N+1)."""
        return exit_losses(self.logits, self.labels)

    @property
    def broadcast_cost_weight(self) -> float | Tensor:
        """The cost weight, (B, 1) if there is one per sample, to multiply tensors (B, N+1)."""
        if isinstance(self.cost_weight, Tensor):
            return self.cost_weight.reshape(-1, 1)
        return self.cost_weight

    @property
    def penalized_losses(self) -> Tensor:
        """CEᵢ + λ·cᵢ of each sample (B, N+1)."""
        return self.losses + self.broadcast_cost_weight * self.costs

    @property
    def best_exit(self) -> Tensor:
        """argminᵢ(CEᵢ + λ·cᵢ) of each sample, the earliest of equals (B,)."""
        return self.penalized_losses.argmin(1)


class Objective(ABC):
    """Scalar loss of a batch.

    Attributes:
        name: registered name.
        uses: inputs besides logits and costs; gates that are not used need not run.
        reads_final: whether the final classifier's logits are needed; if not, they may be absent.
    """

    name: ClassVar[str]
    uses: ClassVar[frozenset[Literal["labels", "gates"]]] = frozenset({"labels"})
    reads_final: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, outputs: BatchOutputs) -> Tensor:
        """Compute the loss, a scalar: a mean over the samples of the batch."""


_objectives: Registry[type[Objective]] = Registry("objective", "leenet_fx.objectives")
register_objective = _objectives.register
list_objectives = _objectives.names
get_objective = _objectives.get


@register_objective("sum")
@dataclass(frozen=True)
class SumOfObjectives(Objective):
    """Sum of several objectives.

    Attributes:
        objectives: the summands.

    Raises:
        InputError: `objectives` is not a tuple of objectives, or empty.
    """

    objectives: tuple[Objective, ...] = ()

    name = "sum"

    def __post_init__(self) -> None:
        summands = self.objectives
        fits = isinstance(summands, tuple) and all(isinstance(one, Objective) for one in summands)
        require_option(
            fits and len(summands) > 0, "objectives", "a non-empty tuple of objectives", summands
        )

    def __call__(self, outputs: BatchOutputs) -> Tensor:
        return torch.stack([objective(outputs) for objective in self.objectives]).sum()


def is_finite_number(value: object) -> bool:
    """Return whether a value is a finite int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require_option(fits: bool, option: str, expected: str, value: object) -> None:
    """Raise InputError that names the option and the expected values, unless `fits`."""
    if not fits:
        raise InputError(f"'{option}' must be {expected}, got {value!r}.")
