"""CalexNet's policy: thresholds of the confidence for each predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.policies.base import register_policy
from leenet_fx.policies.threshold import ThresholdPolicy

NEVER = 2.0
"""A threshold that no probability reaches."""


@register_policy("class-thresholds")
class ClassThresholds(ThresholdPolicy):
    """Exit iff max p − tᵢ[predicted class] ≥ Tᵢ (CalexNet, Aperstein & Apartsin 2026).

    `leenet_fx.calibration.class_thresholds.fit_class_thresholds` fits t. With T = 0 these are the
    thresholds; other T shift them all, which trades accuracy against cost.

    Args:
        class_thresholds: t, for each of N exits one number for each class; 2 is never, unless
            T ≤ −1.
        thresholds: T, as for the other policies.

    Raises:
        InputError: not a table of finite numbers.
    """

    name = "class-thresholds"
    reads = "logits"

    def __init__(
        self,
        class_thresholds: Sequence[Sequence[float]],
        thresholds: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(thresholds)
        try:
            table = torch.tensor(class_thresholds, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"class_thresholds must be a table of numbers: {error}.") from error
        if table.ndim != 2 or not bool(table.isfinite().all()):
            raise InputError(
                "class_thresholds must have one finite number for each exit and class, got shape "
                f"{tuple(table.shape)}."
            )
        self._table = table

    def options(self) -> dict[str, Any]:
        return {"class_thresholds": self._table.tolist(), **super().options()}

    def check(self, num_exits: int) -> None:
        super().check(num_exits)
        if len(self._table) != num_exits:
            raise InputError(
                f"ClassThresholds was fitted to {len(self._table)} exits, but the network has "
                f"{num_exits}: fit it again."
            )

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        if scores.shape[1] != self._table.shape[1]:
            raise InputError(
                f"ClassThresholds was fitted to {self._table.shape[1]} classes, got logits of "
                f"{scores.shape[1]}."
            )
        probabilities = scores.float().softmax(1)
        largest, predicted = probabilities.max(1)
        return largest - self._table[index].to(scores.device)[predicted]

    def __repr__(self) -> str:
        return f"ClassThresholds(thresholds={list(self.thresholds)!r})"
