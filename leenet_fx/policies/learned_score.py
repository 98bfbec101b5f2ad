"""EENet's policy: a learned score of the class probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.policies.base import register_policy
from leenet_fx.policies.threshold import ThresholdPolicy, entropy_terms


@register_policy("eenet")
class LearnedScore(ThresholdPolicy):
    """Exit iff a learned score q̂ᵢ ≥ Tᵢ (EENet, Ilhan et al. 2024).

    q̂ᵢ = clamp(wᵢ·[p, max p, 1 − H(p)/ln m, q̂₀ … q̂ᵢ₋₁] + bᵢ, 0, 1), with the probabilities p of m
    classes at exit i. `leenet_fx.calibrate(…, solver="eenet")` fits it.

    Args:
        weights: for each of N exits, m + 2 + i numbers.
        biases: N numbers.
        thresholds: as for the other policies.

    Raises:
        InputError: numbers of weights or biases that do not fit together, or that are not finite.
    """

    name = "eenet"
    reads = "history"

    def __init__(
        self,
        weights: Sequence[Sequence[float]],
        biases: Sequence[float],
        thresholds: float | Sequence[float] = math.inf,
    ) -> None:
        super().__init__(thresholds)
        try:
            self._weights = tuple(torch.tensor(row, dtype=torch.float32) for row in weights)
            self._biases = torch.tensor(biases, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Expected lists of numbers as weights and biases: {error}."
            ) from error
        widths = [weight.numel() if weight.ndim == 1 else -1 for weight in self._weights]
        first = widths[0] if widths else 0
        if first < 3 or widths != [first + i for i in range(len(widths))]:
            raise InputError(
                f"Expected m + 2 + i weights at exit i of a network of m classes, got {widths}."
            )
        if self._biases.shape != (len(widths),):
            raise InputError(
                f"Expected one bias for each of {len(widths)} exits, got "
                f"{tuple(self._biases.shape)}."
            )
        if not all(bool(values.isfinite().all()) for values in (*self._weights, self._biases)):
            raise InputError("Expected finite weights and biases.")

    @property
    def num_classes(self) -> int:
        """Number of classes m."""
        return len(self._weights[0]) - 2

    def options(self) -> dict[str, Any]:
        return {
            "weights": [weight.tolist() for weight in self._weights],
            "biases": self._biases.tolist(),
            **super().options(),
        }

    def check(self, num_exits: int) -> None:
        super().check(num_exits)
        if len(self._weights) != num_exits:
            raise InputError(
                f"LearnedScore was fitted to {len(self._weights)} exits, but the network has "
                f"{num_exits}: calibrate again with solver='eenet'."
            )

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        if scores.shape[2] != self.num_classes:
            raise InputError(
                f"LearnedScore was fitted to {self.num_classes} classes, got logits of "
                f"{scores.shape[2]}."
            )
        inputs = score_inputs(scores)
        found: list[Tensor] = []
        for exit_index in range(index + 1):
            weight = self._weights[exit_index].to(scores.device)
            values = torch.cat([inputs[:, exit_index], *(score.unsqueeze(1) for score in found)], 1)
            # A product and a sum of each sample: its score does not depend on the batch.
            total = (values * weight).sum(1) + self._biases[exit_index].to(scores.device)
            found.append(total.clamp(0, 1))
        return found[-1]

    def __repr__(self) -> str:
        return f"LearnedScore(thresholds={list(self.thresholds)!r})"


def score_inputs(logits: Tensor) -> Tensor:
    """Return p, max p and 1 − H(p)/ln m of class logits.

    Args:
        logits: (…, m), m ≥ 1; with one class the last input is 1.

    Returns:
        (…, m+2), float32.
    """
    p = logits.float().softmax(-1)
    certainty = 1 - entropy_terms(p).sum(-1, keepdim=True) / math.log(max(p.shape[-1], 2))
    return torch.cat([p, p.amax(-1, keepdim=True), certainty], -1)
