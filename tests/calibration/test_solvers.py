"""Threshold solvers against exhaustive search over all thresholds."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leenet_fx import InputError, MaxProbability, UnknownNameError
from leenet_fx.calibration import solvers
from leenet_fx.calibration.solvers import (
    RATIOS,
    common,
    exit_indices_at,
    exponential,
    exponential_thresholds,
    get_solver,
    list_solvers,
    mean_cost,
    share_thresholds,
    solve_budgets,
)
from leenet_fx.policies import Entropy, Patience, Vote

SOLVERS = [common, exponential]


def exits_by_loop(confidence, thresholds):
    """Exit indices, sample by sample and exit by exit."""
    indices = []
    for sample in confidence:
        index = 0
        while index < len(thresholds) and sample[index] < thresholds[index]:
            index += 1
        indices.append(index)
    return indices


def total_cost(exit_index, costs):
    return sum(costs[index] for index in exit_index)


def thresholds_by_loop(confidence, rho):
    """Give each exit its share of the most confident remaining samples, for n ≤ 10."""
    samples, exits = len(confidence), len(confidence[0])
    remaining = list(range(samples))
    thresholds = []
    for k in range(exits):
        share = rho**k / sum(rho**j for j in range(exits + 1))
        best_first = sorted((confidence[b][k] for b in remaining), reverse=True)
        taken = best_first[: math.floor(samples * share + 1e-9)]
        thresholds.append(taken[-1] if taken else math.inf)
        remaining = [b for b in remaining if confidence[b][k] < thresholds[-1]]
    return thresholds


@st.composite
def confidences(draw, most=8):
    """(n, N) eighths: many ties, and exact in single precision."""
    samples, exits = draw(st.integers(1, most)), draw(st.integers(1, 4))
    row = st.lists(st.integers(-4, 8), min_size=exits, max_size=exits)
    return torch.tensor(draw(st.lists(row, min_size=samples, max_size=samples))) / 8


@st.composite
def problems(draw):
    """Confidences, costs and a budget in 64ths, so that plain sums are exact."""
    confidence = draw(confidences())
    exits = confidence.shape[1]
    steps = draw(st.lists(st.integers(0, 20), min_size=exits, max_size=exits))
    costs = [draw(st.integers(1, 10)) / 64]
    for step in steps:
        costs.append(costs[-1] + step / 64)
    between = st.integers(round(64 * costs[0]), round(64 * costs[-1])).map(lambda v: v / 64)
    return confidence, costs, draw(between | st.sampled_from(costs))


@settings(deadline=None, max_examples=200)
@given(problems())
def test_common_is_the_highest_threshold_in_the_budget(problem):
    confidence, costs, budget = problem
    samples, exits = confidence.shape
    rows = confidence.tolist()
    affordable = [
        threshold
        for threshold in [*confidence.flatten().tolist(), math.inf]
        if total_cost(exits_by_loop(rows, [threshold] * exits), costs) <= budget * samples
    ]
    assert common(confidence, costs, budget) == [max(affordable)] * exits


def drawn(kind, samples, exits, seed):
    """Confidences as policies give them: distinct, saturated at 1, or votes."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(samples, exits, generator=generator)
    if kind == "saturated":
        return (2 * confidence).clamp(max=1)
    if kind == "votes":
        return (exits * confidence).ceil()
    return confidence.to({"half": torch.bfloat16, "double": torch.float64}.get(kind, torch.float))


@pytest.mark.parametrize("kind", ["distinct", "saturated", "votes", "half", "double"])
@pytest.mark.parametrize("budget", [0.4, 0.8])
def test_exponential_is_the_best_of_all_ratios_one_by_one(kind, budget):
    confidence = drawn(kind, 150, 4, seed=1)
    costs = [0.3, 0.45, 0.7, 0.95, 1.05]
    best, expected = -math.inf, None
    for rho in RATIOS:
        thresholds = exponential_thresholds(confidence, rho)
        spent = mean_cost(exit_indices_at(confidence, thresholds), costs)
        if best < spent <= budget:
            best, expected = spent, thresholds
    assert exponential(confidence, costs, budget) == expected


@pytest.mark.parametrize("kind", ["distinct", "saturated", "votes", "half", "double"])
def test_common_is_the_highest_of_all_thresholds_one_by_one(kind):
    confidence = drawn(kind, 150, 4, seed=2)
    costs = [0.3, 0.45, 0.7, 0.95, 1.05]
    affordable = [
        threshold
        for threshold in confidence.unique().tolist()
        if mean_cost(exit_indices_at(confidence, [threshold] * 4), costs) <= 0.6
    ]
    assert common(confidence, costs, 0.6) == [max(affordable)] * 4


@pytest.mark.parametrize("name", ["common", "exponential", "test-first"])
@pytest.mark.parametrize("kind", ["distinct", "saturated"])
def test_many_budgets_at_once_are_the_same_as_one_by_one(name, kind, monkeypatch):
    monkeypatch.setattr(solvers._solvers, "_parts", dict(solvers._solvers._parts))
    solvers.register_solver("test-first")(lambda confidence, costs, budget: [0.0, budget])
    confidence, costs = drawn(kind, 100, 2, seed=3), [0.3, 0.6, 1.0]
    budgets = [0.9, 0.3, 0.45, 0.45, 1.0, 2.0]
    expected = [get_solver(name)(confidence, costs, budget) for budget in budgets]
    assert solve_budgets(name, confidence, costs, budgets) == expected
    assert solve_budgets(name, confidence, costs, []) == []


@pytest.mark.parametrize("name", ["common", "exponential"])
@pytest.mark.parametrize("budgets", [[0.5, 0.1], [0.1, 0.5], [0.5, math.nan], [math.nan, 0.5]])
def test_one_impossible_budget_of_many_is_an_error(name, budgets):
    with pytest.raises(InputError, match=r"budget is (0\.1|nan)"):
        solve_budgets(name, SURE, [0.2, 0.5, 1.0], budgets)


def test_thresholds_for_numbers_of_samples():
    confidence = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.6, 0.5]])
    assert share_thresholds(confidence, [1, 2]) == pytest.approx([0.9, 0.4])
    # The two samples that tie exit together, so that fewer remain for the next exit.
    assert share_thresholds(confidence, [4, 1]) == [pytest.approx(0.6), math.inf]
    assert share_thresholds(confidence, [0, 9]) == [math.inf, pytest.approx(0.1)]
    for counts in ([1], [1, -1]):
        with pytest.raises(InputError, match="numbers of samples ≥ 0 for 2 exits"):
            share_thresholds(confidence, counts)


@settings(deadline=None, max_examples=100)
@given(confidences(most=10), st.sampled_from(RATIOS))
def test_exponential_thresholds_give_each_exit_its_share(confidence, rho):
    assert exponential_thresholds(confidence, rho) == thresholds_by_loop(confidence.tolist(), rho)


@settings(deadline=None, max_examples=12)
@given(problems())
# Two exit at 0 (ρ near 0.3), or one at 0 and one at 1 (ρ near 1), at the same cost.
@example((torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4]]), [0.5, 0.5, 1.0], 0.75))
def test_exponential_has_the_highest_cost_of_all_ratios_within_the_budget(problem):
    confidence, costs, budget = problem
    rows = confidence.tolist()
    best, expected = -math.inf, None
    for rho in RATIOS:
        thresholds = thresholds_by_loop(rows, rho)
        spent = total_cost(exits_by_loop(rows, thresholds), costs)
        if best < spent <= budget * len(rows):
            best, expected = spent, thresholds
    if budget >= costs[-1]:
        expected = [math.inf] * len(expected)
    assert exponential(confidence, costs, budget) == expected


@settings(deadline=None)
@given(st.data(), confidences())
def test_exit_indices_and_mean_cost_equal_a_loop(data, confidence):
    exits = confidence.shape[1]
    thresholds = st.integers(-5, 9).map(lambda v: v / 8) | st.sampled_from([math.inf, -math.inf])
    chosen = data.draw(st.lists(thresholds, min_size=exits, max_size=exits))
    costs = data.draw(st.lists(st.integers(0, 64), min_size=exits + 1, max_size=exits + 1))
    exit_index = exit_indices_at(confidence, chosen)
    expected = exits_by_loop(confidence.tolist(), chosen)
    assert exit_index.tolist() == expected
    assert mean_cost(exit_index, costs) == pytest.approx(
        total_cost(expected, costs) / len(expected)
    )


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(SOLVERS), st.integers(0, 10**6), st.floats(0, 1))
def test_the_mean_cost_is_within_the_budget_and_close_to_it(solver, seed, at):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(300, 4, generator=generator)
    costs = torch.rand(5, generator=generator, dtype=torch.float64).sort().values
    budget = float(costs[0] + at * (costs[-1] - costs[0]))
    spent = mean_cost(exit_indices_at(confidence, solver(confidence, costs, budget)), costs)
    # One sample, or one step of ρ, moves the mean cost by no more than this share of the range.
    assert budget - 0.03 * float(costs[-1] - costs[0]) <= spent <= budget


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("samples", [1, 3, 7, 49])
def test_a_budget_of_exactly_an_exits_cost(solver, samples):
    # 0.1 + 0.1 + 0.1 is more than 0.3, so a mean of rounded sums would not meet a budget of 0.1.
    confidence = torch.rand(samples, 2)
    costs = [0.1, 0.7, 1.1]
    exit_index = exit_indices_at(confidence, solver(confidence, costs, 0.1))
    assert exit_index.tolist() == [0] * samples
    assert mean_cost(exit_index, costs) == 0.1
    assert solver(confidence, costs, 1.1) == [math.inf, math.inf]
    assert solver(confidence, costs, math.inf) == [math.inf, math.inf]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_most_confident_half_exits_early(solver):
    confidence = torch.tensor([[0.1], [0.9], [0.4], [0.6]])
    assert exit_indices_at(confidence, solver(confidence, [0.2, 1.0], 0.6)).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_with_equal_confidence_exit_together(solver):
    confidence = torch.tensor([[0.5, 0.1], [0.5, 0.2], [0.5, 0.3], [0.2, 0.9]])
    # No threshold of exit 0 separates the first three.
    assert exit_indices_at(confidence, solver(confidence, [0.5, 0.75, 1.0], 0.6)).tolist() == [
        0,
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_equal_confidences_all_samples_exit_or_none(solver):
    certain = MaxProbability(1.0).confidence(0, torch.randn(6, 1)).unsqueeze(1).repeat(1, 2)
    assert exit_indices_at(certain, solver(certain, [0.2, 0.6, 1.0], 0.99)).tolist() in (
        [0] * 6,
        [1] * 6,
    )
    assert solver(certain, [0.2, 0.6, 1.0], 1.0) == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("solver", "policy"),
    [
        *((solver, policy) for solver in SOLVERS for policy in (MaxProbability(1), Entropy(1))),
        *((solver, Vote(1)) for solver in SOLVERS),
        (common, Patience(1)),
    ],
)
def test_policies_exit_as_solved(solver, policy):
    logits = 3 * torch.randn(60, 4, 3)
    read = [logits[:, i] if policy.reads == "logits" else logits[:, : i + 1] for i in range(4)]
    confidence = torch.stack([policy.confidence(i, scores) for i, scores in enumerate(read)], 1)
    thresholds = solver(confidence, [0.2, 0.4, 0.6, 0.8, 1.0], 0.7)
    solved = policy.with_confidence(thresholds)
    solved.check(4)
    exit_index = torch.full((60,), 4)
    for index in reversed(range(4)):
        exit_index[solved.should_exit(index, read[index])] = index
    assert torch.equal(exit_index, exit_indices_at(confidence, thresholds))


def test_shares_at_the_ends_of_the_ratio():
    confidence = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    assert exponential_thresholds(confidence, 0.0)[0] == pytest.approx(0.1)
    assert exponential_thresholds(confidence, 1e300) == [math.inf, math.inf]
    assert exponential_thresholds(confidence, 1.0) == pytest.approx([0.5, 0.4])
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="ratio ρ ≥ 0, got"):
            exponential_thresholds(confidence, rho)


@given(st.integers(1, 60))
def test_equal_shares_of_one_sample_for_each_classifier(exits):
    # 49 · (1/49) is less than 1 in floating point; each exit must still receive its sample.
    confidence = torch.rand(exits + 1, exits, generator=torch.Generator().manual_seed(exits))
    assert sorted(
        exit_indices_at(confidence, exponential_thresholds(confidence, 1.0)).tolist()
    ) == list(range(exits + 1))


SURE = torch.tensor([[0.2, 0.4], [0.6, 0.8]])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("confidence", "costs", "budget", "message"),
    [
        (SURE, [0.2, 0.5, 1.0], 0.19, r"budget is 0\.19, but .* between 0\.2, .* and 1\.0"),
        (SURE, [0.2, 0.5, 1.0], math.nan, "budget is nan"),
        (SURE, [0.2, 1.0], 0.5, "Expected 3 costs, .* got 2"),
        (SURE, [0.2, 0.1, 1.0], 0.5, "must not decrease"),
        (SURE, [0.2, 0.5, math.nan], 0.5, "finite costs"),
        (SURE, [[0.2, 0.5, 1.0]], 0.5, "finite costs"),
        (torch.tensor([[0.2, math.nan]]), [0.2, 0.5, 1.0], 0.5, "finite; some are NaN"),
        (torch.tensor([[0.2, math.inf]]), [0.2, 0.5, 1.0], 0.5, "finite; some are NaN or inf"),
        (torch.empty(0, 2), [0.2, 0.5, 1.0], 0.5, r"n ≥ 1 samples .* got .* \(0, 2\)"),
        (torch.empty(2, 0), [1.0], 1.0, r"N ≥ 1 exits, got .* \(2, 0\)"),
        (torch.rand(3), [0.2, 1.0], 0.5, r"got .* \(3,\)"),
        (
            torch.ones(2, 2, dtype=torch.long),
            [0.2, 0.5, 1.0],
            0.5,
            r"floating-point .* got torch\.int64",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_errors(solver, confidence, costs, budget, message):
    with pytest.raises(InputError, match=message):
        solver(confidence, costs, budget)


def test_shapes_and_indices_that_do_not_fit_are_errors():
    with pytest.raises(InputError, match="each of 2 exits, got 1"):
        exit_indices_at(SURE, [0.5])
    with pytest.raises(InputError, match="Exit index 2 has no cost: only 2"):
        mean_cost(torch.tensor([0, 2]), [0.5, 1.0])
    with pytest.raises(InputError, match="n ≥ 1"):
        mean_cost(torch.tensor([], dtype=torch.long), [0.5, 1.0])


def test_solvers_are_registered():
    assert list_solvers() == ["common", "exponential"]
    assert [get_solver(name) for name in list_solvers()] == SOLVERS
    with pytest.raises(UnknownNameError, match=r"Unknown solver 'comon'\. Did you mean 'common'"):
        get_solver("comon")
