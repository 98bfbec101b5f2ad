"""Confidence intervals of means."""

from __future__ import annotations

import math

from scipy import stats
from torch import Tensor

from leenet_fx.surgery.operating_point import Interval


def share_interval(successes: int, samples: int, level: float) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927).

    Args:
        successes: number of samples that count.
        samples: number of all, ≥ 1.
        level: confidence level in (0, 1).
    """
    found = stats.binomtest(successes, samples).proportion_ci(level, method="wilson")
    return Interval(successes / samples, float(found.low), float(found.high))


def mean_interval(values: Tensor, level: float) -> Interval:
    """Return the interval of a mean by Student's t distribution.

    It is approximate for values that are not normal. For one value, or equal ones, it is a point.

    Args:
        values: (n,), n ≥ 1.
        level: confidence level in (0, 1).
    """
    numbers = values.double()
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return Interval(mean, mean, mean)
    width = float(stats.t.ppf((1 + level) / 2, len(numbers) - 1))
    width *= float(numbers.std()) / math.sqrt(len(numbers))
    return Interval(mean, mean - width, mean + width)
