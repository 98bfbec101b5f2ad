"""Risk control: the promise on populations of known risk, and the traps of published code."""

import math

import pytest
import torch
from scipy import stats

from leenet_fx import InputError, UnknownNameError
from leenet_fx.calibration import bounds
from leenet_fx.calibration.bounds import betting_bound, binomial_bound, register_bound
from leenet_fx.calibration.risk_control import budget_path, control_risk, samples_needed
from leenet_fx.calibration.solvers import exit_indices_at, mean_cost

UNIT, GAP = (0.0, 1.0), (-1.0, 1.0)
COSTS = [0.3, 1.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_exit(samples, generator, error=0.2):
    """A single exit whose error rate is error·(1−c) at confidence c, uniform in [0, 1].

    With a threshold t, the share 1−t exits, and the risk is error·(1−t)²/2.
    """
    confidence = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    wrong = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    losses = (wrong < error * (1 - confidence)).double()
    return torch.cat([losses, torch.zeros_like(losses)], 1), confidence


def true_risk(threshold, error=0.2):
    return error * (1 - min(threshold, 1)) ** 2 / 2


PATH = [[1 - step / 20] for step in range(1, 17)]


def broken(rule, draws, target=0.02, samples=400, **options):
    """Number of calibration sets whose chosen threshold has a risk above the target."""
    generator = seeded(5)
    count = 0
    for _ in range(draws):
        losses, confidence = one_exit(samples, generator)
        chosen = control_risk(
            losses,
            confidence,
            PATH,
            target,
            limits=UNIT,
            generator=generator,
            rule=rule,
            **options,
        )
        count += true_risk(chosen.thresholds[0]) > target
    return count


@pytest.mark.parametrize("rule", ["fixed-sequence", "bonferroni"])
@pytest.mark.parametrize("bound", ["betting", "hoeffding-bentkus", "binomial"])
def test_the_promise_is_broken_as_rarely_as_said(rule, bound):
    draws = 40 if bound == "betting" else 80
    count = broken(rule, draws, level=0.8, bound=bound)
    assert stats.binomtest(count, draws, 0.2, alternative="greater").pvalue > 0.001


def test_control_in_expectation_breaks_in_single_draws_but_not_on_average():
    target, generator = 0.02, seeded(6)
    risks = []
    for _ in range(150):
        losses, confidence = one_exit(400, generator)
        chosen = control_risk(
            losses, confidence, PATH, target, limits=UNIT, generator=generator, rule="expectation"
        )
        risks.append(true_risk(chosen.thresholds[0]))
    assert chosen.level is None
    risks = torch.tensor(risks, dtype=torch.float64)
    assert float(risks.mean()) <= target + 3 * float(risks.std()) / math.sqrt(150)
    # A promise at 95 % would break in 8 of 150.
    assert int((risks > target).sum()) > 30


def test_a_finite_test_set_breaks_a_correct_promise_more_often():
    target, generator = 0.02, seeded(7)
    on_population = on_test = 0
    for _ in range(120):
        losses, confidence = one_exit(400, generator)
        chosen = control_risk(
            losses,
            confidence,
            PATH,
            target,
            limits=UNIT,
            generator=generator,
            level=0.95,
            bound="binomial",
        )
        test_losses, test_confidence = one_exit(200, generator)
        exits = exit_indices_at(test_confidence, chosen.thresholds)
        on_population += true_risk(chosen.thresholds[0]) > target
        on_test += float(test_losses.gather(1, exits.unsqueeze(1)).mean()) > target
    assert on_population <= 12
    assert on_test > on_population


def staircase(risks, samples=1000):
    """A path along which the observed risks are as given: sample b may exit at one point only."""
    losses = torch.zeros(samples, len(risks) + 1)
    for index, risk in enumerate(risks):
        losses[: round(risk * samples), index] = 1
    confidence = torch.zeros(samples, len(risks))
    # At point i every sample exits at exit i.
    path = [[0.0 if j == i else 1.0 for j in range(len(risks))] for i in range(len(risks))]
    return losses, confidence, path


def choose(risks, target, **options):
    losses, confidence, path = staircase(risks)
    return control_risk(
        losses, confidence, path, target, limits=UNIT, generator=seeded(), **options
    )


@pytest.mark.parametrize("rule", ["fixed-sequence", "bonferroni", "expectation"])
@pytest.mark.parametrize("bound", ["betting", "hoeffding-bentkus", "binomial"])
def test_the_last_certified_point_is_chosen_not_the_first_uncertified(rule, bound):
    chosen = choose([0, 0.01, 0.02, 0.2, 0.3], 0.1, rule=rule, bound=bound)
    assert chosen.index == 2
    assert chosen.certified
    assert chosen.estimate == pytest.approx(0.02)
    assert 0.02 < chosen.bound <= 0.1
    assert chosen.thresholds == (1, 1, 0, 1, 1)
    assert (chosen.samples, chosen.target, chosen.rule) == (1000, 0.1, rule)


@pytest.mark.parametrize("rule", ["fixed-sequence", "expectation"])
def test_a_point_behind_a_gap_is_not_chosen(rule):
    assert choose([0, 0.3, 0.01, 0.02], 0.1, rule=rule).index == 0


def test_with_the_bonferroni_correction_a_point_behind_a_gap_may_be_chosen():
    chosen = choose([0, 0.3, 0.01, 0.05, 0.2], 0.1, rule="bonferroni", bound="binomial", level=0.9)
    assert chosen.index == 3
    losses = staircase([0, 0.3, 0.01, 0.05, 0.2])[0]
    # Five points are tested.
    assert chosen.bound == pytest.approx(binomial_bound(losses[:, 3], 1 - 0.1 / 5))


def test_a_gap_from_chance_would_be_certified_too_often():
    """Taking the largest passing point breaks the promise; the fixed sequence keeps it."""
    generator, target, draws = seeded(8), 0.1, 100
    first_failure = largest_passing = 0
    for _ in range(draws):
        # Eight points with a risk just above the target, each with its own luck.
        losses = (torch.rand(300, 8, generator=generator) < 0.105).float()
        losses = torch.cat([losses, torch.zeros(300, 1)], 1)
        _, confidence, path = staircase([0] * 8, 300)
        chosen = control_risk(
            losses,
            confidence,
            path,
            target,
            limits=UNIT,
            generator=generator,
            level=0.9,
            bound="binomial",
        )
        first_failure += chosen.certified
        largest_passing += any(binomial_bound(losses[:, i], 0.9) <= target for i in range(8))
    assert stats.binomtest(first_failure, draws, 0.1, alternative="greater").pvalue > 0.001
    assert stats.binomtest(largest_passing, draws, 0.1, alternative="greater").pvalue < 0.001


def test_samples_sorted_by_class_are_shuffled():
    losses = torch.zeros(2000, 2)
    losses[-200:, 0] = 1
    chosen = control_risk(
        losses, torch.ones(2000, 1), [[0.5]], 0.2, limits=UNIT, generator=seeded(), level=0.9
    )
    # Of the sorted losses, the first 1800 refute any risk above 0.003.
    assert betting_bound(losses[:, 0], 0.9) < 0.01
    assert 0.1 < chosen.bound < 0.15
    assert chosen.certified


def test_the_same_generator_gives_the_same_certificate():
    losses, confidence = one_exit(500, seeded(2))
    first, second = (
        control_risk(losses, confidence, PATH, 0.03, limits=UNIT, generator=seeded(9))
        for _ in range(2)
    )
    assert first == second


def test_if_nothing_is_certified_early_exits_are_disabled():
    losses, confidence = one_exit(50, seeded(1))
    chosen = control_risk(losses, confidence, PATH, 0.01, limits=UNIT, generator=seeded())
    assert not chosen.certified
    assert chosen.index is None
    assert chosen.thresholds == (math.inf,)
    assert (chosen.estimate, chosen.bound) == (0, 0)
    assert chosen.samples_needed > 50
    more = one_exit(math.ceil(1.3 * chosen.samples_needed), seeded(1))
    assert control_risk(*more, PATH, 0.01, limits=UNIT, generator=seeded()).certified


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("risk", [0.01, 0.05])
def test_samples_needed_without_losses_is_the_closed_form(risk, level):
    needed = samples_needed(risk, level, limits=UNIT, bound="binomial")
    assert needed == pytest.approx(math.log(1 - level) / math.log(1 - risk), rel=0.02, abs=1)


@pytest.mark.parametrize("bound", ["betting", "hoeffding-bentkus"])
def test_samples_needed_is_where_the_bound_first_meets_the_risk(bound):
    compute = bounds.get_bound(bound)
    needed = samples_needed(0.05, 0.9, limits=GAP, bound=bound)
    assert compute(torch.zeros(needed), 0.9, GAP) <= 0.05
    assert compute(torch.zeros(math.floor(0.97 * needed)), 0.9, GAP) > 0.05


def test_more_samples_are_needed_with_losses_and_none_suffice_above_the_risk():
    losses = torch.tensor([1.0] * 3 + [0.0] * 97)
    assert samples_needed(0.05, limits=UNIT, losses=losses) > samples_needed(0.05, limits=UNIT)
    assert samples_needed(0.03, limits=UNIT, losses=losses) is None
    assert samples_needed(1e-7, limits=UNIT, bound="binomial") is None


@pytest.mark.parametrize("solver", ["common", "exponential"])
def test_a_path_goes_from_expensive_to_cheap(solver):
    confidence = torch.rand(300, 3, generator=seeded())
    costs = [0.2, 0.5, 0.8, 1.1]
    path = budget_path(confidence, costs, solver=solver, steps=40)
    spent = [mean_cost(exit_indices_at(confidence, point), costs) for point in path]
    assert 30 < len(path) <= 40
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > 1.05
    assert spent[-1] == 0.2
    for step, budget in enumerate(spent[:-1], 1):
        assert budget <= 1.1 - 0.9 * step / 40 + 1e-9


LOSSES, CONFIDENCE = torch.zeros(4, 3), torch.rand(4, 2)


@pytest.mark.parametrize(
    ("losses", "confidence", "path", "target", "message"),
    [
        (LOSSES[:, :2], CONFIDENCE, [[0.5, 0.5]], 0.1, "4 samples at 2 exits and the final"),
        (LOSSES[:3], CONFIDENCE, [[0.5, 0.5]], 0.1, r"4 samples .* got \(3, 3\)"),
        (LOSSES[:0], CONFIDENCE[:0], [[0.5, 0.5]], 0.1, "n ≥ 1"),
        (LOSSES + 0.5, CONFIDENCE, [[0.5, 0.5]], 0.1, "last column must be 0"),
        (LOSSES, CONFIDENCE, [], 0.1, "at least one list of thresholds"),
        (LOSSES, CONFIDENCE, [[0.5]], 0.1, "each of 2 exits, got 1"),
        (LOSSES, CONFIDENCE, [[0.5, 0.5]], 0, "above 0, .* got 0"),
        (LOSSES, CONFIDENCE, [[0.5, 0.5]], -0.1, "above 0"),
        (LOSSES, CONFIDENCE, [[0.5, 0.5]], math.nan, "above 0, .* got nan"),
        (LOSSES, CONFIDENCE, [[0.5, 0.5]], 1.5, "no loss exceeds 1"),
        (LOSSES, CONFIDENCE * math.nan, [[0.5, 0.5]], 0.1, "finite"),
    ],
)
def test_arguments_of_control_risk_that_do_not_fit(losses, confidence, path, target, message):
    with pytest.raises(InputError, match=message):
        control_risk(losses, confidence, path, target, limits=UNIT, generator=seeded())


def test_unknown_names_and_levels_are_errors():
    with pytest.raises(UnknownNameError, match="Did you mean 'bonferroni'"):
        choose([0, 0.1], 0.2, rule="bonferoni")
    with pytest.raises(UnknownNameError, match="Unknown bound 'hoefding"):
        choose([0, 0.1], 0.2, bound="hoefding")
    with pytest.raises(UnknownNameError, match="Unknown solver"):
        budget_path(CONFIDENCE, [0.1, 0.2, 0.3], solver="comon")
    for level in (0, 1, 95, math.nan):
        with pytest.raises(InputError, match=r"level in \(0, 1\)"):
            choose([0, 0.1], 0.2, level=level)
        with pytest.raises(InputError, match=r"level in \(0, 1\)"):
            samples_needed(0.1, level, limits=UNIT)
    for steps in (0, 1.5, True):
        with pytest.raises(InputError, match="number of budgets"):
            budget_path(CONFIDENCE, [0.1, 0.2, 0.3], steps=steps)
    with pytest.raises(InputError, match="above 0"):
        samples_needed(0, limits=UNIT)


def test_bounds_of_other_packages_can_be_used(monkeypatch):
    monkeypatch.setattr(bounds._bounds, "_parts", dict(bounds._bounds._parts))
    register_bound("naive")(lambda losses, level, limits: float(losses.mean()))
    assert choose([0, 0.05, 0.1, 0.2], 0.1, bound="naive").index == 2
