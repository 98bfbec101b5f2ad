"""Shallow-Deep Networks."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import check_flag, classifier_phases
from leenet_fx.objectives import ShallowDeep, SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("shallow-deep")
def shallow_deep(
    recipe: str = "disjoint", threshold: float = 0.9, mixed_pooling: bool = False
) -> Method:
    """Shallow-Deep Networks (Kaya et al. 2019): internal classifiers; exit iff max p ≥ T.

    Args:
        recipe: "disjoint" (the paper's IC-only), "joint" (its SDN training, whose weights τᵢ rise
            to each exit's cost) or "mixed".
        threshold: T, least class probability that exits.
        mixed_pooling: whether branches pool α·max + (1−α)·average with a learned α, as published,
            instead of the average.

    Raises:
        InputError: an option does not fit.
    """
    check_flag("mixed_pooling", mixed_pooling)
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), ShallowDeep()),
        policy=MaxProbability(threshold),
        branch="mixpool" if mixed_pooling else "pool",
        requires={"branch": "mixpool"} if mixed_pooling else {},
        source="Kaya et al. 2019, Shallow-Deep Networks",
    )
