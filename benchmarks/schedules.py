"""Learning rates of benchmarks that train the backbone for longer than `fit` does by default."""

from __future__ import annotations

from dataclasses import replace

import leenet_fx


def rescheduled(method: leenet_fx.Method, lr: float | None, decay: float = 0.0) -> leenet_fx.Method:
    """Return a method with other settings of the phases that train the backbone.

    Args:
        method: to change.
        lr: maximum learning rate of Adam, and by the same factor of SGD; None keeps them.
        decay: weight decay of the backbone.
    """
    phases = tuple(
        replace(
            phase,
            lr=phase.lr if lr is None else lr,
            sgd_lr=phase.sgd_lr * (1 if lr is None else lr / phase.lr),
            backbone_decay=decay,
        )
        if "backbone" in phase.parameter_groups
        else phase
        for phase in method.phases
    )
    return replace(method, phases=phases)
