"""Budgeted batch classification of MSDNet."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import EENets, SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("msdnet")
def msdnet(recipe: str = "joint", threshold: float = 0.9) -> Method:
    """MSDNet's budgeted batch classification (Huang et al. 2018): Σ CEᵢ over i = 0..N.

    A sample exits iff its largest class probability reaches the exit's threshold. Thresholds are
    set so that a share ∝ ρᵏ of the samples exits at k: `set_budget(…, solver="exponential")`. The
    network itself is `examples/msdnet.py`.

    Args:
        recipe: "joint", "mixed" or "disjoint".
        threshold: least class probability that exits, until a budget is set.

    Raises:
        InputError: an option does not fit.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), EENets(0)),
        policy=MaxProbability(threshold),
        source="Huang et al. 2018, Multi-Scale Dense Networks",
        trade_off="exit_shares",
    )
