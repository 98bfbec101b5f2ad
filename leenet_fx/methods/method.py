"""What a method is: parts, a recipe, and the policy it trains for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from leenet_fx.errors import InputError
from leenet_fx.methods.phases import Phase
from leenet_fx.policies import Policy
from leenet_fx.registry import Registry, unknown_name

Knob: TypeAlias = Literal["cost_weight", "threshold", "exit_shares", "patience", "alpha"]
"""What moves a method along its frontier of accuracy and cost: the weight of the cost, for which
gates are trained anew; a threshold common to all exits; thresholds by exponential shares; the
patience; the dial of gates that know every weight."""


@dataclass(frozen=True)
class MethodConfig:
    """Name and options of a method: what a network remembers of how it is trained, and saves.

    Attributes:
        name: a registered name, or `CUSTOM` for a `Method` that is not registered.
        options: keyword options that differ from the method's defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Method:
        """Return the method.

        Raises:
            UnknownNameError: no method of that name is registered, or it lacks one of the options.
        """
        return get_method(self.name, **self.options)

    def __str__(self) -> str:
        inner = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"'{self.name}'{inner}"


CUSTOM = "custom"
"""Name of methods that are not registered."""


@dataclass(frozen=True)
class Method:
    """A preset.

    Attributes:
        phases: the recipe, in order.
        policy: who leaves once the recipe is done; or what makes that of the number of exits.
        source: the paper.
        branch: what `attach(method=…)` hangs on exits.
        branch_options: with what options.
        requires: options of branches that the method cannot do without.
        knob: what moves it along its frontier.
        weight: of the cost, where the user gives none.
        highest_weight: 1 for an α, infinity for a λ.
        label_free: whether it trains without labels.
        config: name and options it was made with.
    """

    phases: tuple[Phase, ...]
    policy: Policy | Callable[[int], Policy]
    source: str
    branch: str = "pool"
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    trade_off: Knob = "threshold"
    cost_weight: float = 0.5
    max_cost_weight: float = 1.0
    label_free: bool = False
    config: MethodConfig = MethodConfig(CUSTOM)

    @property
    def name(self) -> str:
        """Registered name; `CUSTOM` where it has none."""
        return self.config.name

    def policy_for(self, num_exits: int) -> Policy:
        """Who leaves, in a network with so many exits."""
        return self.policy if isinstance(self.policy, Policy) else self.policy(num_exits)

    @property
    def gated(self) -> bool:
        """Whether it trains gates, and so has a weight of the cost."""
        return any("gates" in step.parameter_groups for step in self.phases)

    def check_cost_weight(self, cost_weight: float | None) -> float:
        """Raises InputError where `weight` is no weight of the cost for this method.

        Args:
            cost_weight: None takes the method's own.
        """
        if cost_weight is None:
            return self.cost_weight
        if not self.gated:
            raise InputError(
                f"Method '{self.name}' trains no gates, so nothing weighs the cost: got alpha="
                f"{cost_weight!r}. Give it to a method with gates, such as method='leenet'."
            )
        top = self.max_cost_weight
        good = isinstance(cost_weight, (int, float)) and not isinstance(cost_weight, bool)
        if not good or not 0 <= cost_weight <= top or not math.isfinite(cost_weight):
            expected = f"lie in [0, {top:g}]" if math.isfinite(top) else "be 0 or more, and finite"
            raise InputError(
                f"alpha, the weight of the cost, must {expected}, got {cost_weight!r}."
            )
        return float(cost_weight)

    def check_parts(self, branch: str, options: Mapping[str, Any]) -> None:
        """Raises InputError where branches lack what the method cannot do without.

        Args:
            branch: name of the branches' type.
            options: what they were made with.
        """
        for option, expected in self.requires.items():
            found = options.get(option)
            if found != expected:
                raise InputError(
                    f"Method '{self.name}' needs branches with {option}={expected!r}, these have "
                    f"{option}={found!r} ('{branch}'): attach with method='{self.name}'."
                )


DEFAULT = "shallow-deep"
"""What `fit` trains by where no method is named."""

MethodFactory: TypeAlias = Callable[..., Method]
"""Keyword options with defaults → the preset."""

_methods: Registry[MethodFactory] = Registry("method", "leenet_fx.methods")
register_method = _methods.register
list_methods = _methods.names


def get_method(name: str, /, **options: Any) -> Method:
    """The preset of a name.

    Args:
        name: a registered method.
        overrides: options in the place of the method's own.

    Raises:
        UnknownNameError: no such method, or an option that it does not take.
        InputError: an option's value that does not fit.
    """
    factory = _methods.get(name)
    takes = list_method_options(name)
    for option in options:
        if option not in takes:
            raise unknown_name(f"option of method '{name}'", option, takes)
    return replace(factory(**options), config=MethodConfig(name, options))


def as_method(method: str | Method) -> Method:
    """Return a method given by its registered name or as a `Method`.

    Raises:
        UnknownNameError: no method of that name.
        InputError: neither a name nor a `Method`.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise InputError(f"method must be a name or a Method, got {type(method).__name__}.")
    return get_method(method)


def list_method_options(name: str) -> list[str]:
    """The options a method takes, by name.

    Raises:
        UnknownNameError: no such method.
    """
    return list(inspect.signature(_methods.get(name)).parameters)
