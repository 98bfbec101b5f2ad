"""Temperature scaling."""

from __future__ import annotations

import math

from torch import Tensor


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
