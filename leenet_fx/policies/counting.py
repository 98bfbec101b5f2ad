"""Policies that count agreeing predictions over exits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.policies.base import register_policy
from leenet_fx.policies.threshold import ThresholdPolicy, as_thresholds


class CountingPolicy(ThresholdPolicy):
    """Base of policies whose thresholds are numbers of exits: integers from 1, or math.inf.

    `with_thresholds` and `with_confidence` round up, and raise InputError for values that are not
    above 0.
    """

    reads = "history"

    def __init__(self, thresholds: float | Sequence[float]) -> None:
        super().__init__(thresholds)
        if any(value < 1 or value % 1 for value in self.thresholds if value != math.inf):
            raise InputError(
                f"{type(self).__name__} counts exits: expected integers of at least 1, got "
                f"{thresholds!r}."
            )

    def with_thresholds(self, thresholds: float | Sequence[float]) -> Self:
        # An integer count is at least 1.5 iff it is at least 2.
        values = as_thresholds(thresholds)
        return super().with_thresholds([math.ceil(v) if math.isfinite(v) else v for v in values])


@register_policy("patience")
class Patience(CountingPolicy):
    """Exit once `patience` consecutive exits have predicted the class of the exit before (PABEE).

    The confidence is the counter: 0 at the first exit, incremented at each exit that predicts the
    same class as the previous one, and reset to 0 otherwise. Reaching a patience takes patience+1
    exits, so no sample exits early with a patience of N or more. PABEE has one patience for all
    exits; here there may be one per exit.

    No sample can exit at the first exit, so `with_confidence` raises InputError for a confidence of
    0: a budget that requires it is below the cost of a patience of 1.
    """

    name = "patience"
    thresholds_option = "patience"

    def __init__(self, patience: float | Sequence[float]) -> None:
        super().__init__(patience)

    def options(self) -> dict[str, Any]:
        return {"patience": list(self.thresholds)}

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        if scores.shape[1] == 1:
            return scores.new_zeros(scores.shape[0], dtype=torch.float32)
        predicted = scores.argmax(2)
        differs = predicted[:, 1:] != predicted[:, :-1]
        # From the last exit backwards, the sum stays 0 until the first disagreement. A cumulative
        # product would do the same, but ONNX has none.
        disagreements = differs.flip(1).long().cumsum(1)
        return (disagreements == 0).sum(1).float()


@register_policy("vote")
class Vote(CountingPolicy):
    """Exit iff Tᵢ of exits 0 to i predict the same class (EENet's voting baseline).

    The confidence is the number of votes for the most common prediction, 1 at the first exit.
    """

    name = "vote"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        votes = F.one_hot(scores.argmax(2), scores.shape[2]).sum(1)
        return votes.amax(1).float()
