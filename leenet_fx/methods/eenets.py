"""EENets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import (
    EXITS,
    FINAL,
    Phase,
    check_flag,
    end_to_end_phase,
    gate_for,
)
from leenet_fx.objectives import EENets
from leenet_fx.policies import GateThreshold, MaxProbability, Policy


@register_method("eenets")
def eenets(
    version: int = 1, recipe: str = "joint", two_stage: bool = True, as_published: bool = False
) -> Method:
    """EENets (Demir & Akbas 2024): a softmax branch and a confidence branch h at each exit.

    A sample exits iff h > 0.5; in version 3, whose h are normalised over exits, iff h > 1/(N+1).
    Version 0 trains no h: there a sample exits iff its largest class probability is at least 0.5.
    The published h reads features; with a frozen backbone, whose features no longer adapt to it, h
    reads the confidence of the head.

    Args:
        version: 0 to 4, the objective; see `leenet_fx.objectives.EENets`.
        recipe: "joint", "mixed" or "disjoint".
        two_stage: whether a phase with the objective of version 0 comes first.
        as_published: whether version 3 exits iff h > 1/N, which leaves out that the h of the final
            classifier is normalised too, and version 4 weighs its BCE as the authors' code does.

    Raises:
        InputError: no such version or recipe, or `two_stage` or `as_published` is not a bool.
    """
    check_flag("two_stage", two_stage)
    check_flag("as_published", as_published)
    objective = EENets(version, published_weights=as_published)
    first = end_to_end_phase("exits", recipe, EENets(0), gates=False)
    phases: tuple[Phase, ...] = (first,) if two_stage or version == 0 else ()
    if version != 0:
        phases = (*phases, end_to_end_phase("gates", recipe, objective))
    if recipe == "mixed":
        joint = (replace(phase, name=f"joint {phase.name}") for phase in phases)
        phases = (FINAL, EXITS, *joint)
    elif recipe == "disjoint":
        phases = (FINAL, *phases)
    return Method(
        phases=phases,
        policy=_policy(version, as_published),
        source="Demir & Akbas 2024, Early-exit Convolutional Neural Networks",
        branch_options={"gate": gate_for(recipe)},
        trade_off="cost_weight" if version else "threshold",
        cost_weight=1.0,
        max_cost_weight=math.inf,
    )


def _policy(version: int, as_published: bool) -> Policy | Callable[[int], Policy]:
    if version == 0:
        return MaxProbability(0.5)
    if version == 3 and as_published:
        # h ≥ 1/N, as a gate logit; with one exit h would have to be 1.
        return lambda num_exits: GateThreshold(
            -math.log(num_exits - 1) if num_exits > 1 else math.inf
        )
    if version == 3:
        # h ≥ 1/(N+1), as a gate logit.
        return lambda num_exits: GateThreshold(-math.log(num_exits))
    return GateThreshold(0.0)
