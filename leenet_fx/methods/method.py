"""What a method is: a recipe and the policy it trains for."""

from __future__ import annotations

from dataclasses import dataclass

from leenet_fx.parts.policies import Policy
from leenet_fx.parts.recipes import Step
from placement import Registry


@dataclass(frozen=True)
class Method:
    """A preset.

    Attributes:
        name: its registered name.
        steps: the recipe, in order.
        policy: who leaves once the recipe is done.
        source: the paper.
    """

    name: str
    steps: tuple[Step, ...]
    policy: Policy
    source: str


_methods: Registry[Method] = Registry("method", "leenet_fx.methods")
register_method = _methods.register
list_methods = _methods.names
get_method = _methods.get
