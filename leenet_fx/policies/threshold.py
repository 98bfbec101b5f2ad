"""Policies that compare a confidence with a threshold at each exit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.policies.base import Policy, register_policy


class ThresholdPolicy(Policy):
    """Exit iff the confidence reaches a threshold, one per exit or one for all exits.

    An infinite threshold, which no confidence reaches, disables an exit.

    Attributes:
        thresholds: N values, or a single one for all exits.
        sign: 1 if a threshold is a lower bound of the confidence; −1 if it is an upper bound of a
            quantity whose negative is the confidence.
        thresholds_option: the constructor argument that takes the thresholds.
    """

    sign: ClassVar[int] = 1
    thresholds_option: ClassVar[str] = "thresholds"

    def __init__(self, thresholds: float | Sequence[float]) -> None:
        self.thresholds = as_thresholds(thresholds)

    def options(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds)}

    def check(self, num_exits: int) -> None:
        if len(self.thresholds) not in (1, num_exits):
            raise InputError(
                f"{type(self).__name__} has {len(self.thresholds)} thresholds, but the network has "
                f"{num_exits} exits: give one per exit, or a single one for all."
            )

    def threshold_at(self, index: int) -> float:
        """Return the threshold of exit `index`."""
        return self.thresholds[0] if len(self.thresholds) == 1 else self.thresholds[index]

    def disables(self, index: int) -> bool:
        return self.sign * self.threshold_at(index) == math.inf

    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        return self.confidence(index, scores) >= self.sign * self.threshold_at(index)

    def with_thresholds(self, thresholds: float | Sequence[float]) -> Self:
        """Return a policy of the same kind and options with other thresholds.

        Args:
            thresholds: N values on the scale of `thresholds`, or a single one for all exits.

        Raises:
            InputError: not a number or a list of numbers.
        """
        return type(self)(**{**self.options(), self.thresholds_option: thresholds})

    def with_confidence(self, confidences: float | Sequence[float]) -> Self:
        """Return the same policy with other thresholds: exit iff the confidence is at least these.

        Args:
            confidences: N values on the scale of `confidence`, or a single one for all exits;
                math.inf disables an exit.

        Raises:
            InputError: not a number or a list of numbers.
        """
        return self.with_thresholds([self.sign * value for value in as_thresholds(confidences)])


def as_thresholds(values: float | Sequence[float]) -> tuple[float, ...]:
    """Convert one number or a list of numbers to a tuple of floats.

    Raises:
        InputError: not a number or a list of numbers, or NaN.
    """
    try:
        numbers = [values] if isinstance(values, (int, float)) else list(values)
    except TypeError:
        numbers = []
    if not numbers or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in numbers):
        raise InputError(f"Thresholds must be a number or a list of numbers, got {values!r}.")
    if any(math.isnan(value) for value in numbers):
        raise InputError(f"A threshold must not be NaN, got {values!r}.")
    # Turns −0.0 into 0.0: the two are equal but print differently, and equal policies must have
    # equal hashes.
    return tuple(float(value) + 0.0 for value in numbers)


@register_policy("gate")
class GateThreshold(ThresholdPolicy):
    """Exit iff the gate logit zᵢ ≥ Tᵢ; T = 0 is an exit probability of 0.5 (LEENet)."""

    name = "gate"
    reads = "gate"

    def __init__(self, thresholds: float | Sequence[float] = 0.0) -> None:
        super().__init__(thresholds)

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return scores


@register_policy("alpha-gate")
class AlphaConditionedGate(GateThreshold):
    """`GateThreshold` for gates that are conditioned on the cost weight α (`leenet-alpha`).

    Args:
        alpha: cost weight in [0, 1].
        thresholds: as for `GateThreshold`.

    Raises:
        InputError: `alpha` is out of range, or a threshold is not a number.
    """

    name = "alpha-gate"

    def __init__(self, alpha: float = 0.5, thresholds: float | Sequence[float] = 0.0) -> None:
        super().__init__(thresholds)
        is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        if not is_number or not 0 <= alpha <= 1:
            raise InputError(f"alpha must lie in [0, 1], got {alpha!r}.")
        self.alpha = float(alpha)

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super().options()}

    def with_alpha(self, alpha: float) -> Policy:
        return AlphaConditionedGate(alpha, self.thresholds)


class ProbabilityThreshold(ThresholdPolicy):
    """Compares a function of the class probabilities softmax(ŷᵢ/τᵢ) with a threshold.

    Args:
        thresholds: N values, or a single one for all exits.
        temperatures: N+1, τᵢ of each exit and of the final classifier, on which no decision
            depends; None for 1. `leenet_fx.calibrate` can fit them (temperature scaling, Guo et
            al. 2017).

    Raises:
        InputError: a threshold is not a number, or a temperature is not positive and finite.
    """

    reads = "logits"

    def __init__(
        self, thresholds: float | Sequence[float], temperatures: Sequence[float] | None = None
    ) -> None:
        super().__init__(thresholds)
        self.temperatures = None if temperatures is None else _as_temperatures(temperatures)

    def options(self) -> dict[str, Any]:
        options = super().options()
        if self.temperatures is not None:
            options["temperatures"] = list(self.temperatures)
        return options

    def check(self, num_exits: int) -> None:
        super().check(num_exits)
        if self.temperatures is not None and len(self.temperatures) != num_exits + 1:
            raise InputError(
                f"{type(self).__name__} has {len(self.temperatures)} temperatures, but the network "
                f"has {num_exits} exits: give one per exit, and one for the final classifier."
            )

    def with_temperatures(self, temperatures: Sequence[float] | None) -> Self:
        """Return a policy of the same kind and options with other temperatures.

        Args:
            temperatures: N+1; None for 1.

        Raises:
            InputError: a temperature is not positive and finite.
        """
        return type(self)(**{**self.options(), "temperatures": temperatures})

    def probabilities(self, index: int, scores: Tensor) -> Tensor:
        """Return the class probabilities at exit `index`, (B, classes) float32."""
        logits = scores.float()
        if self.temperatures is not None:
            logits = logits / self.temperatures[index]
        return logits.softmax(1)


def _as_temperatures(values: Sequence[float]) -> tuple[float, ...]:
    numbers = as_thresholds(values)
    if not all(0 < value < math.inf for value in numbers):
        raise InputError(f"Temperatures must be positive and finite, got {values!r}.")
    return numbers


@register_policy("max-prob")
class MaxProbability(ProbabilityThreshold):
    """Exit iff the largest class probability ≥ Tᵢ (Shallow-Deep Networks; MSDNet)."""

    name = "max-prob"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return self.probabilities(index, scores).amax(1)


def entropy_terms(p: Tensor) -> Tensor:
    """Return −p·ln p of probabilities, 0 for p = 0.

    Not torch.special.entr, whose decomposition in exported programs torch 2.11 cannot trace again.
    """
    return -p * p.clamp(min=torch.finfo(p.dtype).tiny).log()


@register_policy("entropy")
class Entropy(ProbabilityThreshold):
    """Exit iff the entropy −Σ p·ln p ≤ Tᵢ, in nats (BranchyNet).

    The confidence is the negative entropy. The paper has <; ≤ is the convention of the other
    policies, where a sample whose confidence equals the threshold exits.
    """

    name = "entropy"
    sign = -1

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return -entropy_terms(self.probabilities(index, scores)).sum(1)


@register_policy("margin")
class Margin(ProbabilityThreshold):
    """Exit iff the largest minus the second largest class probability ≥ Tᵢ (JEI-DNN's margin).

    With a single class the margin is 1.
    """

    name = "margin"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        # Padding with probability 0 gives a single class a second largest, and changes no other.
        probabilities = F.pad(self.probabilities(index, scores), (0, 1))
        best, second = probabilities.topk(2, 1).values.unbind(1)
        return best - second


@register_policy("class-mean")
class ClassMeanDistance(ThresholdPolicy):
    """Exit iff the distance to the nearest class mean ≤ Tᵢ (E2CM).

    The confidence is the negative of the smallest distance. For exits whose class logits are the
    negative normalised distances to the class means; for other exits the largest logit is not a
    distance. E2CM thresholds the largest softmax probability of these logits: `MaxProbability`.
    """

    name = "class-mean"
    reads = "logits"
    sign = -1

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return scores.float().amax(1)
