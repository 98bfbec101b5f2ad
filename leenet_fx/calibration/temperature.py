"""Temperature scaling."""

from __future__ import annotations

import math

from torch import Tensor


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 for which softmax(ŷ/T) has the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (n, classes).
        labels: (n,) class indices.
    """
    logits = logits.detach().double()
    low, high = math.log(0.05), math.log(20.0)
    # The cross-entropy is convex in 1/T, so its one minimum is found by bisecting its slope.
    chosen = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    for _ in range(40):
        middle = (low + high) / 2
        expected = (logits * (logits / math.exp(middle)).softmax(1)).sum(1)
        # The slope in 1/T: what the model expects of its logits, less what it gets.
        if float((expected - chosen).mean()) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
