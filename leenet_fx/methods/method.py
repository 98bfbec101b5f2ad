"""What a method is: parts, a recipe, and the policy it trains for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from leenet_fx.errors import InputError
from leenet_fx.policies.policy import Policy
from leenet_fx.methods.phases import Step
from placement import Registry
from placement.registry import unknown_name

Knob: TypeAlias = Literal["weight", "threshold", "shares", "patience", "dial"]
"""What moves a method along its frontier of accuracy and cost: the weight of the cost, for which
gates are trained anew; a threshold common to all exits; thresholds by exponential shares; the
patience; the dial of gates that know every weight."""


@dataclass(frozen=True)
class Method:
    """A preset.

    Attributes:
        steps: the recipe, in order.
        policy: who leaves once the recipe is done; or what makes that of the number of exits.
        source: the paper.
        branch: what `attach(method=…)` hangs on exits.
        branch_options: with what options.
        requires: options of branches that the method cannot do without.
        knob: what moves it along its frontier.
        weight: of the cost, where the user gives none.
        highest_weight: 1 for an α, infinity for a λ.
        unlabelled: whether it does without labels.
    """

    steps: tuple[Step, ...]
    policy: Policy | Callable[[int], Policy]
    source: str
    branch: str = "pool"
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    knob: Knob = "threshold"
    weight: float = 0.5
    highest_weight: float = 1.0
    unlabelled: bool = False

    def policy_for(self, num_exits: int) -> Policy:
        """Who leaves, in a network with so many exits."""
        return self.policy if isinstance(self.policy, Policy) else self.policy(num_exits)

    @property
    def gated(self) -> bool:
        """Whether it trains gates, and so has a weight of the cost."""
        return any("gates" in step.trains for step in self.steps)

    def check_weight(self, name: str, weight: float | None) -> float:
        """Raises InputError where `weight` is no weight of the cost for this method.

        Args:
            name: of the method.
            weight: None takes its own.
        """
        if weight is None:
            return self.weight
        if not self.gated:
            raise InputError(
                f"Method '{name}' trains no gates, so nothing weighs the cost: got alpha="
                f"{weight!r}. Give it to a method with gates, such as method='leenet'."
            )
        top = self.highest_weight
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not good or not 0 <= weight <= top or not math.isfinite(weight):
            expected = f"lie in [0, {top:g}]" if math.isfinite(top) else "be 0 or more, and finite"
            raise InputError(f"alpha, the weight of the cost, must {expected}, got {weight!r}.")
        return float(weight)

    def check_parts(self, name: str, branch: str, options: Mapping[str, Any]) -> None:
        """Raises InputError where branches lack what the method cannot do without.

        Args:
            name: of the method.
            branch: name of the branches' type.
            options: what they were made with.
        """
        for option, expected in self.requires.items():
            found = options.get(option)
            if found != expected:
                raise InputError(
                    f"Method '{name}' needs branches with {option}={expected!r}, these have "
                    f"{option}={found!r} ('{branch}'): attach with method='{name}'."
                )


DEFAULT = "shallow-deep"
"""What `fit` trains by where no method is named."""

MethodFactory: TypeAlias = Callable[..., Method]
"""Keyword options with defaults → the preset."""

_methods: Registry[MethodFactory] = Registry("method", "leenet_fx.methods")
register_method = _methods.register
list_methods = _methods.names


def get_method(name: str, /, **overrides: Any) -> Method:
    """The preset of a name.

    Args:
        name: a registered method.
        overrides: options in the place of the method's own.

    Raises:
        UnknownNameError: no such method, or an option that it does not take.
        InputError: an option's value that does not fit.
    """
    factory = _methods.get(name)
    takes = list_overrides(name)
    for option in overrides:
        if option not in takes:
            raise unknown_name(f"option of method '{name}'", option, takes)
    return factory(**overrides)


def list_overrides(name: str) -> list[str]:
    """The options a method takes, by name.

    Raises:
        UnknownNameError: no such method.
    """
    return list(inspect.signature(_methods.get(name)).parameters)
