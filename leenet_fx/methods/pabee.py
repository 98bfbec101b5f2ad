"""PABEE."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import DepthWeighted, SumOfExits
from leenet_fx.policies import Patience


@register_method("pabee")
def pabee(recipe: str = "joint", patience: int = 2) -> Method:
    """PABEE (Zhou et al. 2020): exit once consecutive exits agree on the predicted class.

    Args:
        recipe: "joint" (depth-weighted mean loss), "mixed" or "disjoint".
        patience: number of consecutive exits that agree with the one before; not the `patience` of
            `fit`, which counts epochs.

    Raises:
        InputError: an option does not fit.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), DepthWeighted()),
        policy=Patience(patience),
        source="Zhou et al. 2020, BERT Loses Patience",
        trade_off="patience",
    )
