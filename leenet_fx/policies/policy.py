"""Policies: who leaves at an exit."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import Registry


class Policy(ABC):
    """Decides from the gate or class logits at an exit which samples leave there.

    Attributes:
        name: its registered name.
        reads: what the decision needs. "gate": class logits are computed only for samples that
            leave. "logits": for all that arrive. "history": likewise, and those of the exits
            before are kept. "nothing": no branch runs.
        alpha: weight of the cost that gates with a dial are asked for; None where there is none.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["gate", "logits", "history", "nothing"]]
    alpha: float | None = None

    @abstractmethod
    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        """Which samples leave at exit `index`.

        Args:
            scores: as `reads` says, gate logits (B,), class logits (B, classes), or the class
                logits of exits 0 to `index` (B, index+1, classes).

        Returns:
            (B,) bool.
        """

    @abstractmethod
    def confidence(self, index: int, scores: Tensor) -> Tensor:
        """What the decision rests on: the larger, the sooner a sample leaves.

        Args:
            scores: as for `leaves`.

        Returns:
            (B,), on the policy's own scale.
        """

    def options(self) -> dict[str, Any]:
        """The arguments that make this policy again; plain JSON values."""
        return {}

    def check(self, num_exits: int) -> None:
        """Raises InputError where the policy does not fit a network with so many exits."""
        del num_exits

    def with_alpha(self, alpha: float) -> Policy:
        """The same policy for another weight of the cost.

        Raises:
            InputError: it has no dial.
        """
        raise InputError(
            f"The policy {self!r} has no dial to turn to alpha={alpha!r}: fit with "
            "method='leenet-alpha'."
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.options() == other.options()

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.options())))

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{type(self).__name__}({inner})"


_policies: Registry[type[Policy]] = Registry("policy", "leenet_fx.policies")
register_policy = _policies.register
list_policies = _policies.names
get_policy = _policies.get


class ThresholdPolicy(Policy):
    """Leave iff the confidence reaches a threshold, one for each exit or one for all.

    Attributes:
        thresholds: N values, or a single one that serves every exit.
        sign: 1 where a threshold is the least confidence that leaves; −1 where it bounds from above
            a quantity whose negative is the confidence.
    """

    sign: ClassVar[int] = 1

    def __init__(self, thresholds: float | Sequence[float]) -> None:
        self.thresholds = _numbers(thresholds)

    def options(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds)}

    def check(self, num_exits: int) -> None:
        if len(self.thresholds) not in (1, num_exits):
            raise InputError(
                f"{type(self).__name__} has {len(self.thresholds)} thresholds, but the network has "
                f"{num_exits} exits: give one for each exit, or a single one for all."
            )

    def at(self, index: int) -> float:
        """The threshold of one exit; a single value serves all."""
        return self.thresholds[0] if len(self.thresholds) == 1 else self.thresholds[index]

    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        return self.confidence(index, scores) >= self.sign * self.at(index)

    def with_confidence(self, confidences: float | Sequence[float]) -> Self:
        """The same policy, at other thresholds: leave iff the confidence is at least the given one.

        Args:
            confidences: N values on the scale of `confidence`, or a single one for all exits;
                math.inf lets nobody leave.

        Raises:
            InputError: not a number or a list of numbers.
        """
        return type(self)([self.sign * value for value in _numbers(confidences)])


def _numbers(given: float | Sequence[float]) -> tuple[float, ...]:
    try:
        values = [given] if isinstance(given, (int, float)) else list(given)
    except TypeError:
        values = []
    if not values or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise InputError(f"Thresholds must be a number or a list of numbers, got {given!r}.")
    if any(math.isnan(value) for value in values):
        raise InputError(f"A threshold must not be NaN, got {given!r}.")
    # −0.0 equals 0.0 but is written otherwise, and equal policies must have equal hashes.
    return tuple(float(value) + 0.0 for value in values)


@register_policy("never")
class NeverExit(Policy):
    """Nobody leaves and no branch runs: the plain model."""

    name = "never"
    reads = "nothing"

    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return torch.full((scores.shape[0],), -math.inf, device=scores.device)


@register_policy("gate")
class GateThreshold(ThresholdPolicy):
    """Leave iff the gate logit zᵢ ≥ Tᵢ; T = 0 is an even chance (LEENet)."""

    name = "gate"
    reads = "gate"

    def __init__(self, thresholds: float | Sequence[float] = 0.0) -> None:
        super().__init__(thresholds)

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return scores


@register_policy("alpha-gate")
class AlphaConditionedGate(GateThreshold):
    """As `LearnedGate`, of gates that know every weight α of the cost (`leenet-alpha`)."""

    name = "alpha-gate"

    def __init__(self, alpha: float = 0.5, thresholds: float | Sequence[float] = 0.0) -> None:
        super().__init__(thresholds)
        good = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
        if not good or not 0 <= alpha <= 1:
            raise InputError(f"alpha must lie in [0, 1], got {alpha!r}.")
        self.alpha = float(alpha)

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super().options()}

    def with_alpha(self, alpha: float) -> Policy:
        return AlphaConditionedGate(alpha, self.thresholds)

    def with_confidence(self, confidences: float | Sequence[float]) -> Self:
        return type(self)(self.alpha or 0.0, confidences)


@register_policy("max-prob")
class MaxProbability(ThresholdPolicy):
    """Leave iff the largest class probability ≥ Tᵢ (Shallow-Deep; MSDNet)."""

    name = "max-prob"
    reads = "logits"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return scores.float().softmax(1).amax(1)


@register_policy("entropy")
class Entropy(ThresholdPolicy):
    """Leave iff the entropy −Σ p·ln p ≤ Tᵢ, in nats (BranchyNet).

    The paper has <; with ≤ the entropy of a sample is the threshold at which it just leaves, as the
    confidence is for the other policies. The confidence is minus the entropy.
    """

    name = "entropy"
    reads = "logits"
    sign = -1

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        probabilities = scores.float().softmax(1)
        terms: Tensor = torch.special.entr(probabilities)
        return -terms.sum(1)


@register_policy("margin")
class Margin(ThresholdPolicy):
    """Leave iff the largest class probability less the second largest ≥ Tᵢ (JEI-DNN's margin).

    With a single class the margin is 1.
    """

    name = "margin"
    reads = "logits"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        # A class of probability 0 more is the runner-up of a single class; else it changes nothing.
        probabilities = F.pad(scores.float().softmax(1), (0, 1))
        best, second = probabilities.topk(2, 1).values.unbind(1)
        return best - second


@register_policy("class-mean")
class ClassMeanDistance(ThresholdPolicy):
    """Leave iff the distance to the nearest class mean ≤ Tᵢ (E2CM).

    For exits whose class logits are minus the normalised distances to the class means; elsewhere
    minus the largest logit is no distance. The confidence is minus the smallest distance. E2CM's
    own rule, the largest softmax probability of these logits, is `MaxProbability`.
    """

    name = "class-mean"
    reads = "logits"
    sign = -1

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return scores.float().amax(1)


class _Counts(ThresholdPolicy):
    """Thresholds on a number of exits: whole and at least 1, or math.inf for nobody.

    `with_confidence` rounds up, and refuses with an InputError what is not above 0.
    """

    reads = "history"

    def __init__(self, thresholds: float | Sequence[float]) -> None:
        super().__init__(thresholds)
        if any(value < 1 or value % 1 for value in self.thresholds if value != math.inf):
            raise InputError(
                f"{type(self).__name__} counts exits: expected whole numbers of at least 1, got "
                f"{thresholds!r}."
            )

    def with_confidence(self, confidences: float | Sequence[float]) -> Self:
        # A count reaches 1.5 when it reaches 2.
        values = _numbers(confidences)
        return type(self)([math.ceil(v) if math.isfinite(v) else v for v in values])


@register_policy("patience")
class Patience(_Counts):
    """Leave once so many exits in a row have predicted what the exit before them did (PABEE).

    The confidence is the counter: 0 at the first exit, one more at each exit that predicts the
    same class as the exit before it, and 0 again at one that does not. `patience` must be reached,
    which takes patience+1 exits: with a patience of N or more nobody leaves early. PABEE has one
    patience for all exits; one for each exit is allowed.

    Nobody can leave at the first exit, so `with_confidence` refuses a confidence of 0 with an
    InputError: the budget it was solved for is below what a patience of 1 costs.
    """

    name = "patience"

    def __init__(self, patience: float | Sequence[float]) -> None:
        super().__init__(patience)

    def options(self) -> dict[str, Any]:
        return {"patience": list(self.thresholds)}

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        predicted = scores.argmax(2)
        agrees = predicted[:, 1:] == predicted[:, :-1]
        # Reading backwards, the product stays 1 until the first disagreement.
        return agrees.flip(1).long().cumprod(1).sum(1).float()


@register_policy("vote")
class Vote(_Counts):
    """Leave iff Tᵢ of the exits until here predict the same class (EENet's voting baseline).

    The confidence is the number of votes of the most common prediction, 1 at the first exit.
    """

    name = "vote"

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        votes = F.one_hot(scores.argmax(2), scores.shape[2]).sum(1)
        return votes.amax(1).float()


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """A policy as plain JSON values."""
    return {"name": policy.name, **policy.options()}


def policy_from_dict(data: object) -> Policy:
    """Reads what `policy_to_dict` wrote.

    Raises:
        InputError: not such a description.
        UnknownNameError: no policy of that name is registered.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise InputError(f"Expected a policy with a 'name', got {data!r}.")
    options = {key: value for key, value in data.items() if key != "name"}
    try:
        return get_policy(data["name"])(**options)
    except TypeError as error:
        raise InputError(f"Policy '{data['name']}' does not take {options}: {error}.") from error
