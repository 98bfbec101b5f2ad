"""Confidence intervals of means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from torch import Tensor

from leenet_fx.surgery.operating_point import Interval

RESAMPLES = 2000
"""Number of resamples of a bootstrap."""


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


def paired_drop_interval(before: Tensor, after: Tensor, level: float) -> Interval:
    """Return the interval of a drop of accuracy that two classifiers show on the same samples.

    Wald's interval with half a sample added to each cell of the 2 x 2 table (Agresti and Min 2005),
    which is no point if the classifiers agree on all samples.

    Args:
        before: (n,) bool, which samples the one classifier has right.
        after: (n,) bool, the other.
        level: confidence level in (0, 1).
    """
    samples = len(before)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    size, fewer, more = samples + 2, lost + 0.5, gained + 0.5
    centre = (fewer - more) / size
    variance = (fewer + more - (fewer - more) ** 2 / size) / size**2
    width = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    drop = (lost - gained) / samples
    return Interval(drop, max(-1.0, centre - width), min(1.0, centre + width))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], level: float
) -> Interval:
    """Return the interval of the ratio of two sums over the same measurements.

    Percentile bootstrap over pairs; for less than two pairs it is a point.

    Args:
        numerators: of each measurement.
        denominators: of each measurement, positive.
        level: confidence level in (0, 1).
    """
    above, below = np.array(numerators, dtype=float), np.array(denominators, dtype=float)
    ratio = float(above.sum() / below.sum())
    if len(above) < 2:
        return Interval(ratio, ratio, ratio)
    found = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        n_resamples=RESAMPLES,
        paired=True,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(ratio, float(found.low), float(found.high))
