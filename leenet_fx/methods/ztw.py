"""Zero Time Waste."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import EXITS, FINAL, single_update_phase
from leenet_fx.objectives import SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("ztw")
def ztw(threshold: float = 0.9) -> Method:
    """Zero Time Waste (Wołczyk et al. 2021): cascaded heads, then geometric ensembles of them.

    Args:
        threshold: least class probability of the ensemble that exits.

    Raises:
        InputError: `threshold` is not a number.
    """
    ensembles = single_update_phase("ensembles", "ensembles", SumOfExits(), lr=0.01)
    return Method(
        phases=(FINAL, EXITS, ensembles),
        policy=MaxProbability(threshold),
        source="Wołczyk et al. 2021, Zero Time Waste",
        branch_options={"head": "cascade"},
        requires={"head": "cascade"},
    )
