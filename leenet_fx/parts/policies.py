"""Policies: who leaves at an exit."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from placement import Registry


class Policy(ABC):
    """Decides from an exit's gate or class logits which samples leave there.

    Attributes:
        name: its registered name.
        reads: what the decision needs. "gate": class logits are computed only for samples that
            leave. "logits": for all that arrive. "nothing": no branch runs.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["gate", "logits", "nothing"]]

    @abstractmethod
    def leaves(self, index: int, scores: Tensor) -> Tensor:
        """Which samples leave at exit `index`.

        Args:
            scores: gate logits (B,) or class logits (B, classes), as `reads` says.

        Returns:
            (B,) bool.
        """

    def options(self) -> dict[str, Any]:
        """The arguments that make this policy again; plain JSON values."""
        return {}

    def check(self, num_exits: int) -> None:
        """Raises InputError where the policy does not fit a network with so many exits."""
        del num_exits

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


class _Thresholds(Policy):
    def __init__(self, thresholds: float | Sequence[float]) -> None:
        values = [thresholds] if isinstance(thresholds, (int, float)) else list(thresholds)
        if not values or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) for v in values
        ):
            raise InputError(
                f"Thresholds must be a number or a list of numbers, got {thresholds!r}."
            )
        if any(math.isnan(value) for value in values):
            raise InputError(f"A threshold must not be NaN, got {thresholds!r}.")
        self.thresholds = tuple(float(value) for value in values)

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


@register_policy("shut")
class Shut(Policy):
    """Nobody leaves and no branch runs: the plain model."""

    name = "shut"
    reads = "nothing"

    def leaves(self, index: int, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)


@register_policy("gate")
class LearnedGate(_Thresholds):
    """Leave iff the gate logit zᵢ ≥ Tᵢ; T = 0 is an even chance (LEENet)."""

    name = "gate"
    reads = "gate"

    def __init__(self, thresholds: float | Sequence[float] = 0.0) -> None:
        super().__init__(thresholds)

    def leaves(self, index: int, scores: Tensor) -> Tensor:
        return scores >= self.at(index)


@register_policy("max-prob")
class MaxProbability(_Thresholds):
    """Leave iff the largest class probability ≥ Tᵢ (Shallow-Deep; MSDNet)."""

    name = "max-prob"
    reads = "logits"

    def leaves(self, index: int, scores: Tensor) -> Tensor:
        return scores.float().softmax(1).amax(1) >= self.at(index)


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
