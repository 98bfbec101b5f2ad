"""Recipes: in which order the parts of a network with exits are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Trains: TypeAlias = Literal["classifiers", "final", "gates"]

Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(losses (B, K), gate logits (B, N), relative costs (N+1,), alpha) → scalar."""


@dataclass(frozen=True)
class Step:
    """One phase of training with the backbone frozen.

    Attributes:
        name: what users call it, for instance in `epochs={"gates": 5}`.
        trains: what moves: the exits' classifiers, the final classifier, or the gates.
        loss: what is minimised. The losses are those of the N exits for "classifiers", of the final
            classifier for "final", and of all N+1, held constant, for "gates".
        lr: Adam's learning rate where the user gives none.
        tempered: whether the losses held constant are those of logits whose temperature was fitted
            first (Guo et al. 2017): a classifier that knows its training images by heart is too
            sure of itself, and its cross-entropy says more of that than of its errors.
    """

    name: str
    trains: Trains
    loss: Loss
    lr: float = 0.1
    tempered: bool = False


def sum_of_losses(losses: Tensor, gates: Tensor, costs: Tensor, alpha: float) -> Tensor:
    """Σᵢ mean CEᵢ. Exits share no parameter, so each is trained as if alone."""
    del gates, costs, alpha
    return losses.mean(0).sum()
