"""Upper confidence bounds of the mean of bounded losses.

All bounds hold for any number of independent samples n ≥ 1, not only for large n, and assume
nothing about the losses but their range. They differ in what they use: `betting_bound` uses the
variance of the losses, so it is by far the tightest where most losses are equal;
`hoeffding_bentkus_bound` uses the mean alone; `binomial_bound` is exact for losses of 0 and 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeAlias

import torch
from scipy.special import bdtr, betaincinv
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import Registry

Bound: TypeAlias = Callable[[Tensor, float, tuple[float, float]], float]
"""(losses (n,), confidence level, range of the losses) → upper bound of the expected loss."""

UNIT = (0.0, 1.0)

_bounds: Registry[Bound] = Registry("bound", "leenet_fx.bounds")
register_bound = _bounds.register
list_bounds = _bounds.names
get_bound = _bounds.get

BISECTIONS = 30
"""Halvings of the range of a bound: its upper end is returned, so the bound is never too low."""


@register_bound("betting")
def betting_bound(losses: Tensor, level: float, limits: tuple[float, float] = UNIT) -> float:
    """Return an upper confidence bound that adapts to the variance of the losses.

    The betting (hedged capital) bound of Waudby-Smith & Ramdas (2024), as in Bates et al. (2021,
    "Distribution-free, risk-controlling prediction sets", section 3.1.3): a gambler bets against
    the mean being R, with the predictable plug-in stakes νᵢ = min(1, √(2 ln(1/δ) / (n σ̂²ᵢ₋₁))).
    The bound is the smallest R at which the capital Π (1 − νᵢ (Lᵢ − R)) exceeded 1/δ at any time.

    The bound depends on the order of the losses, which must not depend on their values: shuffle
    samples that are sorted by class. It assumes independent samples.

    Args:
        losses: (n,), n ≥ 1.
        level: confidence level 1−δ in (0, 1).
        limits: smallest and largest possible loss.

    Raises:
        InputError: losses outside their range, no losses, or a level outside (0, 1).
    """
    values = _scaled(losses, level, limits)
    stakes = _stakes(values, level)
    threshold = -math.log(1 - level)

    def refuted(risk: float) -> bool:
        # With a stake of 1, a loss of 1 and a risk of 0 the capital is 0, and its logarithm −∞.
        return float((stakes * (risk - values)).log1p().cumsum(0).amax()) > threshold

    return _unscaled(_smallest(refuted), limits)


@register_bound("hoeffding-bentkus")
def hoeffding_bentkus_bound(
    losses: Tensor, level: float, limits: tuple[float, float] = UNIT
) -> float:
    """Return the smallest mean that `hoeffding_bentkus_p_value` rejects (Bates et al. 2021).

    Args:
        losses: (n,), n ≥ 1.
        level: confidence level 1−δ in (0, 1).
        limits: smallest and largest possible loss.

    Raises:
        InputError: losses outside their range, no losses, or a level outside (0, 1).
    """
    values = _scaled(losses, level, limits)
    mean, samples = _mean(values), len(values)
    return _unscaled(_smallest(lambda risk: _p_value(mean, samples, risk) <= 1 - level), limits)


def hoeffding_bentkus_p_value(
    losses: Tensor, risk: float, limits: tuple[float, float] = UNIT
) -> float:
    """Return a p-value of the hypothesis that the expected loss is above `risk`.

    p = min(exp(−n·h(min(R̂, α), α)), e·P(Bin(n, α) ≤ ⌈n·R̂⌉)), h(a, b) = a ln(a/b) +
    (1−a) ln((1−a)/(1−b)), for losses scaled to [0, 1], their mean R̂ and α the scaled risk
    (Angelopoulos et al. 2021, "Learn then test", proposition 2).

    Args:
        losses: (n,), n ≥ 1.
        risk: tested expected loss, within `limits`.
        limits: smallest and largest possible loss.

    Returns:
        In [0, 1]. Whatever the losses' distribution, it is ≤ δ with probability at most δ if their
        expectation is above `risk`.

    Raises:
        InputError: losses outside their range, no losses, or a risk outside it.
    """
    values = _scaled(losses, 0.5, limits)
    low, high = limits
    if not low <= risk <= high:
        raise InputError(f"Expected a risk in [{low}, {high}], got {risk!r}.")
    return _p_value(_mean(values), len(values), (risk - low) / (high - low))


@register_bound("binomial")
def binomial_bound(losses: Tensor, level: float, limits: tuple[float, float] = UNIT) -> float:
    """Return the exact upper bound for losses of two values (Clopper & Pearson 1934).

    Args:
        losses: (n,), n ≥ 1, each one of the two `limits`.
        level: confidence level 1−δ in (0, 1).
        limits: the two possible losses.

    Raises:
        InputError: losses other than these two, no losses, or a level outside (0, 1).
    """
    values = _scaled(losses, level, limits)
    if not bool(((values == 0) | (values == 1)).all()):
        raise InputError(
            f"The binomial bound is for losses of {limits[0]:g} and {limits[1]:g} only, and there "
            "are others: use 'betting'."
        )
    samples, ones = len(values), int(values.sum())
    share = 1.0 if ones == samples else float(betaincinv(ones + 1, samples - ones, level))
    return _unscaled(share, limits)


def check_level(level: float) -> None:
    """Raise InputError if a confidence level is not in (0, 1)."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise InputError(
            f"Expected a confidence level in (0, 1), for instance 0.95, got {level!r}."
        )


def _scaled(losses: Tensor, level: float, limits: tuple[float, float]) -> Tensor:
    """Return checked losses in double precision, scaled from their range to [0, 1]."""
    check_level(level)
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"Expected a finite range (low, high) of losses, got {limits!r}.")
    if losses.ndim != 1 or not len(losses):
        raise InputError(f"Expected losses (n,) of n ≥ 1 samples, got {tuple(losses.shape)}.")
    values = losses.detach().cpu().double()
    # NaN fails the comparison too.
    if not bool(((values >= low) & (values <= high)).all()):
        raise InputError(
            f"Expected losses in [{low:g}, {high:g}], got {float(values.min()):g} to "
            f"{float(values.max()):g}."
        )
    return ((values - low) / (high - low)).clamp(0, 1)


def _unscaled(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return low + (high - low) * value


def _mean(values: Tensor) -> float:
    return math.fsum(values.tolist()) / len(values)


def _smallest(rejected: Callable[[float], bool]) -> float:
    """Return the smallest value in [0, 1] that is rejected, rounded up; 1 if none is.

    Args:
        rejected: whether a value is; once rejected, all larger ones are.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if rejected(middle):
            high = middle
        else:
            low = middle
    return high


def _stakes(values: Tensor, level: float) -> Tensor:
    """Return νᵢ (n,), each computed from the losses before it."""
    samples = len(values)
    numbers = torch.arange(1, samples + 1, dtype=torch.float64)
    means = (0.5 + values.cumsum(0)) / (numbers + 1)
    variances = (0.25 + (values - means).square().cumsum(0)) / (numbers + 1)
    before = torch.cat([variances.new_tensor([0.25]), variances[:-1]])
    stakes: Tensor = (-2 * math.log(1 - level) / (samples * before)).sqrt().clamp(max=1)
    return stakes


def _p_value(mean: float, samples: int, risk: float) -> float:
    if mean >= risk:
        return 1.0
    if risk == 1:
        return 0.0
    divergence = _entropy_term(mean, risk) + _entropy_term(1 - mean, 1 - risk)
    # Rounding must not raise ⌈n·R̂⌉ where n·R̂ is a whole number.
    count = math.ceil(samples * mean * (1 - 4 * sys.float_info.epsilon))
    return min(math.exp(-samples * divergence), math.e * float(bdtr(count, samples, risk)), 1.0)


def _entropy_term(a: float, b: float) -> float:
    return a * math.log(a / b) if a > 0 else 0.0
