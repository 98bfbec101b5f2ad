"""BoostNet."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import BoostNet, SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("boostnet")
def boostnet(recipe: str = "joint", threshold: float = 0.9) -> Method:
    """BoostNet (Yu et al. 2023): the logits of each exit are added to those of the exit before.

    Args:
        recipe: "joint" (gradients rescaled), "mixed" or "disjoint".
        threshold: least class probability that exits, until a budget is set.

    Raises:
        InputError: an option does not fit.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), BoostNet()),
        policy=MaxProbability(threshold),
        source="Yu et al. 2023, Boosted Dynamic Neural Networks",
        branch_options={"head": "additive"},
        requires={"head": "additive"},
        trade_off="exit_shares",
    )
