"""BoostNet."""

from __future__ import annotations

from leenet_fx.errors import InputError
from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import BoostNet, SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("boostnet")
def boostnet(
    recipe: str = "joint", threshold: float = 0.9, ensemble_reweight: float = 1.0
) -> Method:
    """BoostNet (Yu et al. 2023): the logits of each exit are added to those of the exit before.

    Args:
        recipe: "joint" (gradients rescaled), "mixed" or "disjoint".
        threshold: least class probability that exits, until a budget is set.
        ensemble_reweight: factor of the earlier logits: 1, as in the paper's formula, or 0.5, as in
            the authors' experiments.

    Raises:
        InputError: an option does not fit.
    """
    heads = {1.0: "additive", 0.5: "additive-half"}
    is_number = isinstance(ensemble_reweight, (int, float))
    if not is_number or isinstance(ensemble_reweight, bool) or ensemble_reweight not in heads:
        raise InputError(f"ensemble_reweight must be 1 or 0.5, got {ensemble_reweight!r}.")
    head = heads[ensemble_reweight]
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), BoostNet()),
        policy=MaxProbability(threshold),
        source="Yu et al. 2023, Boosted Dynamic Neural Networks",
        branch_options={"head": head},
        requires={"head": head},
        trade_off="exit_shares",
    )
