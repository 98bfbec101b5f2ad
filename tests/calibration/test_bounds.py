"""Confidence bounds against closed forms, scipy's own interval, and coverage of a known mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leenet_fx import InputError, UnknownNameError
from leenet_fx.calibration.bounds import (
    betting_bound,
    binomial_bound,
    get_bound,
    hoeffding_bentkus_bound,
    hoeffding_bentkus_p_value,
    list_bounds,
    register_bound,
)

BOUNDS = [betting_bound, hoeffding_bentkus_bound, binomial_bound]
SAMPLES, LEVEL, DRAWS = 150, 0.9, 300


def ones(number, samples):
    return torch.tensor([1.0] * number + [0.0] * (samples - number))


@pytest.mark.parametrize("samples", [1, 7, 300])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_without_losses_the_binomial_bound_is_the_rule_of_three(samples, level):
    # (1 − p)ⁿ = δ.
    expected = 1 - (1 - level) ** (1 / samples)
    assert binomial_bound(ones(0, samples), level) == pytest.approx(expected)
    assert binomial_bound(ones(samples, samples), level) == 1


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_binomial_bound_is_scipys_exact_interval(counts):
    number, samples = counts
    interval = stats.binomtest(number, samples, alternative="less").proportion_ci(0.95, "exact")
    assert binomial_bound(ones(number, samples), 0.95) == pytest.approx(interval.high)


@settings(deadline=None)
@given(st.integers(0, 40), st.floats(0.01, 0.99))
def test_the_p_value_is_the_formula(number, risk):
    mean = number / 40
    relative = stats.entropy([mean, 1 - mean], [risk, 1 - risk])
    hoeffding = math.exp(-40 * relative) if mean < risk else 1
    bentkus = math.e * stats.binom.cdf(number, 40, risk)
    assert hoeffding_bentkus_p_value(ones(number, 40), risk) == pytest.approx(
        1.0 if mean >= risk else min(hoeffding, bentkus, 1)
    )


def test_losses_between_whole_numbers_count_as_the_next():
    losses = torch.full((10,), 0.25)
    expected = min(
        math.exp(-10 * stats.entropy([0.25, 0.75], [0.6, 0.4])),
        math.e * stats.binom.cdf(3, 10, 0.6),
    )
    assert hoeffding_bentkus_p_value(losses, 0.6) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(0, 30))
def test_the_hoeffding_bentkus_bound_is_where_the_p_value_is_delta(number):
    losses = ones(number, 30)
    bound = hoeffding_bentkus_bound(losses, 0.9)
    if bound < 1:
        assert hoeffding_bentkus_p_value(losses, bound) == pytest.approx(0.1, rel=1e-6)
    else:
        assert number == 30


def betting_by_loop(losses, level, risks):
    """The smallest of some risks at which the gambler's capital has exceeded 1/δ."""
    for risk in risks:
        capital, total, squares = 1.0, 0.5, 0.25
        variance = 0.25
        for index, loss in enumerate(losses):
            stake = min(1, math.sqrt(2 * math.log(1 / (1 - level)) / len(losses) / variance))
            capital *= 1 - stake * (loss - risk)
            if capital > 1 / (1 - level):
                return risk
            total += loss
            mean = total / (index + 2)
            squares += (loss - mean) ** 2
            variance = squares / (index + 2)
    return 1.0


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_betting_bound_is_the_first_refuted_risk_of_a_grid(losses, level):
    grid = [step / 500 for step in range(501)]
    bound = betting_bound(torch.tensor(losses, dtype=torch.float64), level)
    assert bound - 1e-9 <= betting_by_loop(losses, level, grid) <= bound + 1 / 500 + 1e-9


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=50))
@settings(deadline=None, max_examples=30)
def test_bounds_scale_with_the_range(losses):
    unit = torch.tensor(losses)
    for bound in (betting_bound, hoeffding_bentkus_bound):
        scaled = bound(3 * unit - 1, 0.9, (-1.0, 2.0))
        assert scaled == pytest.approx(3 * bound(unit, 0.9) - 1)
        assert unit.double().mean() <= bound(unit, 0.9) <= 1


def draws(kind):
    """Losses of many calibration sets with a known mean, their range, and that mean."""
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(DRAWS, SAMPLES, generator=generator, dtype=torch.float64)
    if kind == "gap":
        # 3 % worse, 1 % better.
        return (uniform < 0.03).double() - (uniform > 0.99).double(), (-1.0, 1.0), 0.02
    if kind == "rare":
        return (uniform < 0.03).double(), (0.0, 1.0), 0.03
    if kind == "even":
        return (uniform < 0.5).double(), (0.0, 1.0), 0.5
    return uniform**4, (0.0, 1.0), 0.2


@pytest.mark.parametrize("kind", ["gap", "rare", "even", "continuous"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_bound_covers_the_mean_as_often_as_promised(kind, bound):
    losses, limits, mean = draws(kind)
    if bound is binomial_bound and kind not in ("rare", "even"):
        with pytest.raises(InputError, match="use 'betting'"):
            bound(losses[0], LEVEL, limits)
        return
    broken = sum(bound(sample, LEVEL, limits) < mean for sample in losses)
    # A correct bound breaks in at most one draw of ten, on average over draws.
    assert stats.binomtest(broken, DRAWS, 1 - LEVEL, alternative="greater").pvalue > 0.001


def test_only_the_betting_bound_uses_that_most_losses_are_equal():
    losses = torch.zeros(5000)
    losses[::100] = 1
    losses[1::200] = -1
    gap = (-1.0, 1.0)
    mean = float(losses.mean())
    shuffled = losses[torch.randperm(5000, generator=torch.Generator().manual_seed(0))]
    assert betting_bound(shuffled, 0.95, gap) - mean < 0.006
    assert hoeffding_bentkus_bound(shuffled, 0.95, gap) - mean > 0.025


def test_the_exact_bound_is_the_tightest_for_zeros_and_ones():
    for number in (0, 3, 20):
        losses = ones(number, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
        exact = binomial_bound(losses, 0.95)
        assert exact <= hoeffding_bentkus_bound(losses, 0.95)
        assert exact <= betting_bound(losses, 0.95)


def test_mapie_has_the_same_p_values():
    mapie = pytest.importorskip(
        "mapie.risk_control.methods",
        reason="mapie, which the p-values are compared with, is not installed",
        exc_type=ImportError,
    )
    for number in (0, 2, 9, 14, 30):
        theirs = mapie.compute_hoeffding_bentkus_p_value(np.array([number / 50]), 50, 0.3)
        ours = hoeffding_bentkus_p_value(ones(number, 50), 0.3)
        # From the mean equal to the risk on, ours is 1; theirs is of a mean above the risk, too.
        assert ours == pytest.approx(min(1.0, float(theirs.item())))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("losses", "level", "limits", "message"),
    [
        (torch.tensor([0.0, 1.5]), 0.9, (0.0, 1.0), r"losses in \[0, 1\], got 0 to 1\.5"),
        (torch.tensor([-0.1]), 0.9, (0.0, 1.0), r"losses in \[0, 1\]"),
        (torch.tensor([math.nan]), 0.9, (0.0, 1.0), "losses in .* got nan"),
        (torch.zeros(0), 0.9, (0.0, 1.0), r"n ≥ 1 samples, got \(0,\)"),
        (torch.zeros(2, 2), 0.9, (0.0, 1.0), r"got \(2, 2\)"),
        (torch.zeros(3), 1.0, (0.0, 1.0), r"level in \(0, 1\), .* got 1\.0"),
        (torch.zeros(3), 0, (0.0, 1.0), "got 0"),
        (torch.zeros(3), math.nan, (0.0, 1.0), "got nan"),
        (torch.zeros(3), "95 %", (0.0, 1.0), "got '95 %'"),
        (torch.zeros(3), 0.9, (1.0, 1.0), "range"),
        (torch.zeros(3), 0.9, (0.0, math.inf), "range"),
    ],
)
def test_what_does_not_fit_is_an_error(bound, losses, level, limits, message):
    with pytest.raises(InputError, match=message):
        bound(losses, level, limits)


def test_a_risk_outside_the_range_cannot_be_tested():
    with pytest.raises(InputError, match=r"risk in \[0\.0, 1\.0\], got 1\.2"):
        hoeffding_bentkus_p_value(torch.zeros(3), 1.2)
    assert hoeffding_bentkus_p_value(torch.zeros(3), 1.0) == 0
    assert hoeffding_bentkus_p_value(torch.zeros(3), 0.0) == 1


def test_bounds_are_registered():
    assert list_bounds() == ["betting", "binomial", "hoeffding-bentkus"]
    assert get_bound("betting") is betting_bound
    with pytest.raises(UnknownNameError, match="Did you mean 'betting'"):
        get_bound("beting")
    with pytest.raises(ValueError, match="already registered"):
        register_bound("betting")(betting_bound)
