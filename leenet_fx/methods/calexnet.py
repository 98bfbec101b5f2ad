"""CalexNet."""

from __future__ import annotations

from leenet_fx.methods.method import Method, register_method
from leenet_fx.methods.phases import FINAL, check_flag, single_update_phase
from leenet_fx.objectives import CalexNet
from leenet_fx.policies import MaxProbability


@register_method("calexnet")
def calexnet(temperature: float = 2.0, threshold: float = 0.9, prototypes: bool = True) -> Method:
    """CalexNet (Aperstein & Apartsin 2026): exits trained on the samples that reach them.

    The backbone is frozen and the teacher, so no labels are read: each exit minimises the KL
    divergence to it, with soft weights for the samples that survive the exits before; see
    `leenet_fx.objectives.CalexNet`. The paper's thresholds, for each class the least confidence
    with a given precision among the survivors, are fitted afterwards:
    `ee.policy = fit_class_thresholds(ee, data, precision=0.95)`, from
    `leenet_fx.calibration.class_thresholds`. Until then a
    sample exits iff its largest class probability reaches the threshold.

    Args:
        temperature: T > 0 of the divergence.
        threshold: least class probability that exits, and the confidence at which the survival
            weights fall to one half.
        prototypes: whether branches pool by learned prototypes beside the average, branch
            "prototype"; False takes branch "pool".

    Raises:
        InputError: an option does not fit.
    """
    check_flag("prototypes", prototypes)
    objective = CalexNet(temperature=temperature, confidence=threshold)
    return Method(
        phases=(FINAL, single_update_phase("exits", "classifiers", objective)),
        policy=MaxProbability(threshold),
        source="Aperstein & Apartsin 2026, CalexNet (Electronics 15(10) 2149)",
        branch="prototype" if prototypes else "pool",
        label_free=True,
    )
