"""Temperature scaling."""

from __future__ import annotations

import math

from torch import Tensor

from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.errors import InputError
from leenet_fx.policies import ProbabilityThreshold, ThresholdPolicy


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T > 0 for which softmax(ŷ/T) has the lowest cross-entropy (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,) class indices.
    """
    logits = logits.detach().double()
    low, high = math.log(0.05), math.log(20.0)
    # The cross-entropy is convex in 1/T, so its minimum is found by bisecting its slope.
    of_label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    for _ in range(40):
        middle = (low + high) / 2
        expected = (logits * (logits / math.exp(middle)).softmax(1)).sum(1)
        # The slope in 1/T is the expected logit under the model less the logit of the label.
        if float((expected - of_label).mean()) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def check_tempered(policy: ThresholdPolicy, solver: str, labels: Tensor) -> None:
    """Raise InputError if no temperatures can be fitted.

    Args:
        policy: compares a function of class probabilities with thresholds.
        solver: name of the solver.
        labels: (n,) class indices, negative where there is none.
    """
    if not isinstance(policy, ProbabilityThreshold) or solver == "eenet":
        what = f"solver='{solver}'" if solver == "eenet" else f"the policy {policy!r}"
        raise InputError(
            f"temperatures=True is for policies that compare class probabilities (max-prob, "
            f"entropy, margin) and keep them, got {what}."
        )
    if not bool((labels >= 0).all()):
        raise InputError("temperatures=True needs images with labels.")


def tempered(policy: ThresholdPolicy, outputs: CachedOutputs) -> ThresholdPolicy:
    """Return a policy with the temperature of each exit and of the final classifier.

    Args:
        policy: compares a function of class probabilities with thresholds.
        outputs: of images with labels.
    """
    assert isinstance(policy, ProbabilityThreshold)
    return policy.with_temperatures(
        [fit_temperature(logits, outputs.labels) for logits in outputs.logits]
    )
