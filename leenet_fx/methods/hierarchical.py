"""Hierarchical training."""

from __future__ import annotations

from dataclasses import replace

from leenet_fx.errors import InputError
from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import FinalClassifier, SumOfExits, SumOfObjectives
from leenet_fx.policies import MaxProbability


@register_method("hierarchical")
def hierarchical(
    recipe: str = "joint", cuts: tuple[int, ...] = (0,), threshold: float = 0.9
) -> Method:
    """Hierarchical training (Sepehri et al. 2024): tiers that exchange no gradients.

    Each tier minimises Σ CEᵢ over its own exits, and over the final classifier in the last tier.
    Activations at the cuts are detached, so a tier trains its part of the backbone by its own
    losses, and on separate machines features go forward only.

    Args:
        recipe: "joint", "mixed" or "disjoint"; a frozen backbone has no gradients to stop.
        cuts: indices of the exits that end a tier, ascending; the paper has one.
        threshold: least class probability that exits.

    Raises:
        InputError: an option does not fit.
    """
    indices = tuple(cuts) if isinstance(cuts, (tuple, list)) else ()
    whole = all(type(index) is int and index >= 0 for index in indices)
    if not indices or not whole or list(indices) != sorted(set(indices)):
        raise InputError(f"cuts must be ascending indices of exits, such as (0,), got {cuts!r}.")
    phases = classifier_phases(
        recipe, SumOfExits(), SumOfObjectives((SumOfExits(), FinalClassifier()))
    )
    return Method(
        phases=tuple(
            replace(phase, detached_exits=indices)
            if "backbone" in phase.parameter_groups
            else phase
            for phase in phases
        ),
        policy=MaxProbability(threshold),
        source="Sepehri et al. 2024, Hierarchical Training of Deep Neural Networks Using Early "
        "Exiting",
    )
