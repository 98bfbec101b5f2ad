"""Methods: branch architecture, training recipe and exit policy of an early-exit system."""

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

TradeOff: TypeAlias = Literal[
    "cost_weight", "threshold", "exit_shares", "patience", "alpha", "schedule"
]
"""Parameter that trades accuracy against cost: the cost weight, for which gates are retrained; one
threshold for all exits; thresholds per exit, for exponentially distributed exit shares; the
patience; the α of gates that are conditioned on it; EENet's scheduler, fitted for each budget."""


@dataclass(frozen=True)
class MethodConfig:
    """Name and options of a method: what a network stores about its training, and saves.

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

    @property
    def argument(self) -> str:
        """The `method=` of a call that selects the method."""
        if self.name == CUSTOM:
            return "method= this Method"
        return f"method=leenet_fx.get_method({self})" if self.options else f"method='{self.name}'"

    def __str__(self) -> str:
        inner = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"'{self.name}'{inner}"


CUSTOM = "custom"
"""Name of methods that are not registered."""


@dataclass(frozen=True)
class Method:
    """An early-exit system as a combination of parts.

    Attributes:
        phases: training phases, in order.
        policy: exit policy after training, or a function from the number of exits to the policy.
        source: the paper.
        branch: branch architecture that `attach(method=…)` uses.
        branch_options: options of these branches.
        requires: branch options without which the method does not work, and "branch", a name; a
            tuple has several values that it works with.
        trade_off: parameter that trades accuracy against cost.
        cost_weight: default cost weight.
        max_cost_weight: 1 for an α, infinity for a λ.
        label_free: whether training reads no labels.
        config: name and options from which the method was built.
    """

    phases: tuple[Phase, ...]
    policy: Policy | Callable[[int], Policy]
    source: str
    branch: str = "pool"
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    trade_off: TradeOff = "threshold"
    cost_weight: float = 0.5
    max_cost_weight: float = 1.0
    label_free: bool = False
    config: MethodConfig = MethodConfig(CUSTOM)

    @property
    def name(self) -> str:
        """Registered name, or `CUSTOM`."""
        return self.config.name

    def policy_for(self, num_exits: int) -> Policy:
        """Return the exit policy for a network with `num_exits` exits."""
        return self.policy if isinstance(self.policy, Policy) else self.policy(num_exits)

    @property
    def has_gates(self) -> bool:
        """Whether gates are trained, and hence a cost weight applies."""
        return any("gates" in phase.parameter_groups for phase in self.phases)

    @property
    def trains_backbone(self) -> bool:
        """Whether a phase trains the backbone."""
        return any("backbone" in phase.parameter_groups for phase in self.phases)

    def check_cost_weight(self, cost_weight: float | None) -> float:
        """Return a valid cost weight.

        Args:
            cost_weight: None selects the method's default.

        Raises:
            InputError: the method trains no gates, or the value is out of range.
        """
        if cost_weight is None:
            return self.cost_weight
        if not self.has_gates:
            raise InputError(
                f"Method '{self.name}' trains no gates, so it has no cost weight: got alpha="
                f"{cost_weight!r}. alpha is for methods with gates, such as method='leenet'."
            )
        top = self.max_cost_weight
        is_number = isinstance(cost_weight, (int, float)) and not isinstance(cost_weight, bool)
        if not is_number or not 0 <= cost_weight <= top or not math.isfinite(cost_weight):
            expected = f"lie in [0, {top:g}]" if math.isfinite(top) else "be ≥ 0 and finite"
            raise InputError(f"alpha, the cost weight, must {expected}, got {cost_weight!r}.")
        return float(cost_weight)

    def check_parts(self, branch: str, options: Mapping[str, Any]) -> None:
        """Check the branch and the branch options that the method requires.

        Args:
            branch: name of the branch architecture.
            options: branch options of the network.

        Raises:
            InputError: the branch or an option differs from the required value.
        """
        for option, expected in self.requires.items():
            found = branch if option == "branch" else options.get(option)
            accepted = expected if isinstance(expected, tuple) else (expected,)
            if found not in accepted:
                kind = "" if option == "branch" else f" ('{branch}')"
                raise InputError(
                    f"Method '{self.name}' requires branches with {option}={accepted[0]!r}, but "
                    f"these have {option}={found!r}{kind}: attach with {self.config.argument}."
                )

    def unlike_preset(self, options: Mapping[str, Any]) -> str:
        """Return which head and gate the preset has where those of a network differ; "" if none.

        Those that the method requires are left to `check_parts`.

        Args:
            options: branch options of the network.
        """
        defaults = {"head": "linear", "gate": "confidence"}
        return ", ".join(
            f"{option}={expected!r}, not {found!r}"
            for option, default in defaults.items()
            if option not in self.requires
            and (expected := self.branch_options.get(option, default))
            != (found := options.get(option) or default)
        )


DEFAULT = "shallow-deep"
"""Name of the method that `fit` uses by default."""

MethodFactory: TypeAlias = Callable[..., Method]
"""Keyword options with defaults → method."""

_methods: Registry[MethodFactory] = Registry("method", "leenet_fx.methods")
register_method = _methods.register
list_methods = _methods.names


def get_method(name: str, /, **options: Any) -> Method:
    """Build a registered method.

    Args:
        name: registered name; see `list_methods`.
        options: the method's options; see `list_method_options`.

    Raises:
        UnknownNameError: no such method, or it has no such option.
        InputError: the value of an option does not fit.
    """
    factory = _methods.get(name)
    known = list_method_options(name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of method '{name}'", option, known)
    return replace(factory(**options), config=MethodConfig(name, options))


def as_method(method: str | Method) -> Method:
    """Return a method that is given by its registered name or as a `Method`.

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
    """Return the names of a method's options.

    Raises:
        UnknownNameError: no such method.
    """
    return list(inspect.signature(_methods.get(name)).parameters)
