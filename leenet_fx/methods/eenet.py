"""EENet: a learned schedule of exits for a budget, on exits that are trained first."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import classifier_phases
from leenet_fx.objectives import EENets, SumOfExits
from leenet_fx.policies import MaxProbability


@register_method("eenet")
def eenet(recipe: str = "disjoint", threshold: float = 0.9) -> Method:
    """Exits by cross-entropy, Σ CEᵢ, for EENet's scheduler (Ilhan et al. 2024).

    The scheduler works on any trained exits, and is fitted for a budget on calibration images:
    `leenet_fx.calibrate(ee, data, budget=…, solver="eenet")`. Until then a sample exits iff its
    largest class probability reaches the threshold. On a frozen backbone its scores are no better
    than that probability by more than a hundredth of the FLOPs.

    Args:
        recipe: "joint", "mixed" or "disjoint".
        threshold: least class probability that exits, until a budget is set.

    Raises:
        InputError: an option does not fit.
    """
    return Method(
        phases=classifier_phases(recipe, SumOfExits(), EENets(0)),
        policy=MaxProbability(threshold),
        source="Ilhan et al. 2024, Adaptive Deep Neural Network Inference Optimization with EENet",
        trade_off="schedule",
    )
