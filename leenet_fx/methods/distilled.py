"""Exits distilled from the final classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import ENSEMBLES, check_flag, classifier_phases
from leenet_fx.objectives import Distillation, FinalClassifier, SumOfObjectives
from leenet_fx.policies import MaxProbability


@register_method("distilled")
def distilled(
    recipe: str = "disjoint",
    mix: float = 0.5,
    temperature: float = 2.0,
    threshold: float = 0.9,
    ensembles: bool = False,
) -> Method:
    """Exits trained on labels and distilled from the final classifier; exit iff max p ≥ threshold.

    (1−mix)·CEᵢ + mix·T²·KL(softmax(ŷ_N/T) ‖ softmax(ŷᵢ/T)) (Hinton et al. 2015; Phuong & Lampert
    2019 for exits).

    Args:
        recipe: "disjoint", "joint" or "mixed".
        mix: weight of the distillation loss, in [0, 1]; with 1 and recipe "disjoint" no labels are
            read, so that images alone suffice.
        temperature: T > 0.
        threshold: least class probability that exits.
        ensembles: whether each exit classifies by a geometric ensemble of its head and those
            before, whose weights are trained last, on the calibration images if there are any; see
            `leenet_fx.parts.heads.EnsembleHead`. Where no labels are read, on the classes that the
            backbone predicts.

    Raises:
        InputError: an option does not fit.
    """
    check_flag("ensembles", ensembles)
    label_free = mix == 1 and recipe == "disjoint"
    labels: Literal["given", "backbone"] = "backbone" if label_free else "given"
    last = (replace(ENSEMBLES, labels=labels),) if ensembles else ()
    distillation = Distillation(mix=mix, temperature=temperature)
    joint = SumOfObjectives((distillation, FinalClassifier()))
    return Method(
        phases=(*classifier_phases(recipe, distillation, joint), *last),
        policy=MaxProbability(threshold),
        source="Phuong & Lampert 2019, Distillation-based Training for Multi-exit Architectures",
        label_free=label_free,
        branch_options={"head": "ensemble"} if ensembles else {},
        requires={"head": "ensemble"} if ensembles else {},
    )
