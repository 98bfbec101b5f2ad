"""Differentiable branching."""

from __future__ import annotations

import math

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, end_to_end_phase, gate_for
from leenet_fx.objectives import DifferentiableBranching
from leenet_fx.policies import GateThreshold


@register_method("diffbranch")
def diffbranch(recipe: str = "mixed") -> Method:
    """Differentiable branching (Scardapane et al. 2020): L = CE(f̃₀) + λ·γ̃₀, end to end.

    f̃ᵢ = gᵢ·pᵢ + (1−gᵢ)·f̃ᵢ₊₁. The paper does not give λ. A sample exits iff gᵢ ≥ 0.5; the ensemble
    f̃₀ is `leenet_fx.objectives.soft_probabilities`. The published gate reads features; with a
    frozen backbone, whose features no longer adapt to it, gates read the head's confidence.

    The paper trains all from random weights. From a trained backbone all gates would close within
    the first batches, while the exits still guess, and exits behind closed gates learn nothing: so
    the exits are trained first.

    Args:
        recipe: "mixed" (exits first, then all), "joint" (all from the start, as published), or
            "disjoint", with a frozen backbone.

    Raises:
        InputError: no such recipe.
    """
    joint = end_to_end_phase("joint", recipe, DifferentiableBranching())
    return Method(
        phases=(joint,) if recipe == "joint" else (FINAL, EXITS, joint),
        policy=GateThreshold(0.0),
        source="Scardapane et al. 2020, Differentiable Branching in Deep Networks",
        branch_options={"gate": gate_for(recipe)},
        trade_off="cost_weight",
        max_cost_weight=math.inf,
    )
