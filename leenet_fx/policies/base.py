"""Base of policies, their registry, and their form as JSON values."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import Registry


class Policy(ABC):
    """Decision, from the gate logits or class logits at an exit, which samples exit there.

    Attributes:
        name: registered name.
        reads: inputs of the decision. "gate": gate logits; class logits are computed only for
            samples that exit. "logits": class logits, computed for all samples that arrive.
            "history": class logits of this exit and all earlier ones. "gate-history": gate logits
            of these. "nothing": no branch runs.
        alpha: cost weight for gates that are conditioned on it; None for other gates.
        temperatures: N+1, by which the class logits of each exit and of the final classifier are
            divided before their softmax; None for 1.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["gate", "logits", "history", "gate-history", "nothing"]]
    alpha: float | None = None
    temperatures: tuple[float, ...] | None = None

    @abstractmethod
    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        """Decide which samples exit at exit `index`.

        Args:
            index: of the exit, 0 to N−1.
            scores: depending on `reads`, gate logits (B,), class logits (B, classes), the class
                logits of exits 0 to `index` (B, index+1, classes), or their gate logits
                (B, index+1, 1).

        Returns:
            (B,) bool.
        """

    @abstractmethod
    def confidence(self, index: int, scores: Tensor) -> Tensor:
        """Compute the quantity that is compared with the threshold; larger values exit earlier.

        Args:
            index: of the exit.
            scores: as for `should_exit`.

        Returns:
            (B,), on the policy's scale.
        """

    @property
    def reads_gates(self) -> bool:
        """Whether gates decide, so that class logits are needed for exiting samples only."""
        return self.reads in ("gate", "gate-history")

    @property
    def reads_history(self) -> bool:
        """Whether the decision at an exit reads the scores of earlier exits."""
        return self.reads in ("history", "gate-history")

    def disables(self, index: int) -> bool:
        """Return whether no sample can exit at exit `index`, whatever its scores.

        Its branch is then evaluated only if a later exit reads its logits.
        """
        del index
        return False

    def options(self) -> dict[str, Any]:
        """Return the constructor arguments of this policy, as plain JSON values."""
        return {}

    def check(self, num_exits: int) -> None:
        """Raise InputError if the policy does not fit a network with `num_exits` exits."""
        del num_exits

    def with_alpha(self, alpha: float) -> Policy:
        """Return the same policy for another cost weight.

        Args:
            alpha: in [0, 1].

        Raises:
            InputError: the policy is not conditioned on a cost weight, or `alpha` is out of range.
        """
        raise InputError(
            f"The policy {self!r} is not conditioned on a cost weight, got alpha={alpha!r}: fit "
            "with method='leenet-alpha'."
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


@register_policy("never")
class NeverExit(Policy):
    """No early exits: no branch runs, and all samples reach the final classifier."""

    name = "never"
    reads = "nothing"

    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)

    def disables(self, index: int) -> bool:
        return True

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return torch.full((scores.shape[0],), -math.inf, device=scores.device)


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """Return a policy as plain JSON values: its name and options."""
    return {"name": policy.name, **policy.options()}


def policy_from_dict(data: object) -> Policy:
    """Build a policy from the result of `policy_to_dict`.

    Raises:
        InputError: `data` is no such description, or an option does not fit.
        UnknownNameError: no policy of that name is registered.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise InputError(f"Expected a policy with a 'name', got {data!r}.")
    options = {key: value for key, value in data.items() if key != "name"}
    try:
        return get_policy(data["name"])(**options)
    except TypeError as error:
        raise InputError(f"Policy '{data['name']}' does not take {options}: {error}.") from error
