"""Exits chosen from cached outputs, against all subsets sample by sample."""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import PlacementError, select_exits


def measure(confidence, correct, costs, branches, subset, threshold):
    """Accuracy and mean cost, sample by sample."""
    right = spent = 0.0
    for row, hits in zip(confidence, correct, strict=True):
        for index in subset:
            spent += branches[index]
            if row[index] >= threshold:
                spent += costs[index]
                right += hits[index]
                break
        else:
            spent += costs[-1]
            right += hits[-1]
    return right / len(confidence), spent / len(confidence)


def brute_force(confidence, correct, costs, branches, num_exits, min_accuracy, thresholds):
    """The lowest mean cost of all subsets and thresholds that are accurate enough."""
    points = (
        measure(confidence, correct, costs, branches, subset, threshold)
        for subset in combinations(range(len(branches)), num_exits)
        for threshold in thresholds
    )
    return min((cost for accuracy, cost in points if accuracy >= min_accuracy), default=None)


def problem(seed, samples, number, most_branch=8):
    """Outputs whose later exits are right more often; costs in 64ths, so that sums are exact."""
    draw = random.Random(seed)
    confidence = [[draw.randint(0, 8) / 8 for _ in range(number)] for _ in range(samples)]
    correct = [
        [draw.random() < 0.4 + 0.5 * index / number for index in range(number + 1)]
        for _ in range(samples)
    ]
    costs = sorted(draw.randint(0, 64) / 64 for _ in range(number + 1))
    branches = [draw.randint(0, most_branch) / 64 for _ in range(number)]
    return confidence, correct, costs, branches


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 30), st.integers(0, 10), st.data())
def test_the_exact_search_is_brute_force(seed, number, samples, tenths, data):
    given_outputs = problem(seed, samples, number)
    num_exits = data.draw(st.integers(1, number))
    thresholds = [0.25, 0.5, 0.75, math.inf]
    expected = brute_force(*given_outputs, num_exits, tenths / 10, thresholds)
    if expected is None:
        with pytest.raises(PlacementError, match="the final classifier alone has"):
            select_exits(*given_outputs, num_exits, min_accuracy=tenths / 10, thresholds=thresholds)
        return
    chosen = select_exits(
        *given_outputs, num_exits, min_accuracy=tenths / 10, thresholds=thresholds
    )
    assert chosen.exact
    assert chosen.cost == pytest.approx(expected)
    assert len(chosen.indices) == num_exits
    assert chosen.accuracy >= tenths / 10
    measured = measure(*given_outputs, chosen.indices, chosen.threshold)
    assert (chosen.accuracy, chosen.cost) == pytest.approx(measured)


@pytest.mark.parametrize("num_exits", [1, 3, 6, 11])
def test_twelve_candidates(num_exits):
    given_outputs = problem(num_exits, 40, 12, most_branch=3)
    chosen = select_exits(*given_outputs, num_exits, min_accuracy=0.4, thresholds=[0.6])
    assert chosen.cost == pytest.approx(brute_force(*given_outputs, num_exits, 0.4, [0.6]))


def test_many_candidates_are_searched_greedily_and_the_result_says_so():
    given_outputs = problem(3, 60, 8)
    exact = select_exits(*given_outputs, 3, min_accuracy=0.5, thresholds=[0.5])
    greedy = select_exits(*given_outputs, 3, min_accuracy=0.5, thresholds=[0.5], exact_up_to=7)
    assert not greedy.exact
    assert exact.cost <= greedy.cost
    accuracy, cost = measure(*given_outputs, greedy.indices, greedy.threshold)
    assert (greedy.accuracy, greedy.cost) == pytest.approx((accuracy, cost))
    many = problem(4, 200, 40)
    chosen = select_exits(*many, 6, min_accuracy=0.5, thresholds=[0.5, 0.9])
    assert not chosen.exact
    assert len(chosen.indices) == 6


def test_an_exit_that_nobody_takes_only_costs():
    confidence = [[0.0, 0.9, 0.9]] * 4
    correct = [[True, True, True, True]] * 4
    chosen = select_exits(
        confidence,
        correct,
        [0.1, 0.2, 0.3, 1.0],
        [0.05, 0.01, 0.01],
        1,
        min_accuracy=1.0,
        thresholds=[0.5],
    )
    assert chosen.indices == (1,)
    assert chosen.cost == pytest.approx(0.21)


def test_accuracy_is_compared_in_whole_samples():
    # 0.7 · 10 is above 7 in floating point on some machines; seven of ten must pass.
    correct = [[b < 7, True] for b in range(10)]
    confidence = [[1.0]] * 10
    chosen = select_exits(
        confidence, correct, [0.1, 1.0], [0.0], 1, min_accuracy=0.7, thresholds=[0.5]
    )
    assert chosen.accuracy == 0.7
    with pytest.raises(PlacementError, match=r"accuracy of 0\.75"):
        select_exits(confidence, correct, [0.1, 1.0], [0.0], 1, min_accuracy=0.75, thresholds=[0.5])


CONFIDENCE, CORRECT = [[0.5, 0.6]] * 3, [[True, True, True]] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": []}, "got 0 samples"),
        ({"costs": [0.1, 0.2]}, "2 costs and 2 branches"),
        ({"branch_costs": []}, "0 branches"),
        ({"correct": CORRECT[:2]}, "correctness of 3 samples, got 2"),
        ({"correct": [[True, True]] * 3}, "of sample 0, got 2 and 2"),
        ({"confidence": [[0.5, 0.6], [0.5], [0.5, 0.6]]}, "of sample 1, got 1 and 3"),
        ({"confidence": [[0.5, 0.6], [0.5, math.nan], [0, 0]]}, "sample 1 is NaN"),
        ({"costs": [0.2, 0.1, 1.0]}, "must not decrease"),
        ({"costs": [0.1, 0.2, math.nan]}, "finite"),
        ({"branch_costs": [-0.1, 0.0]}, "at least 0"),
        ({"num_exits": 0}, "1 to 2 exits to choose, got 0"),
        ({"num_exits": 3}, "1 to 2 exits to choose, got 3"),
        ({"num_exits": True}, "got True"),
        ({"min_accuracy": 1.1}, r"accuracy in \[0, 1\], got 1\.1"),
        ({"min_accuracy": math.nan}, "got nan"),
        ({"thresholds": []}, "at least one threshold"),
        ({"thresholds": [0.5, math.nan]}, "none NaN"),
    ],
)
def test_what_does_not_fit_is_an_error(changes, message):
    arguments = {
        "confidence": CONFIDENCE,
        "correct": CORRECT,
        "costs": [0.1, 0.2, 1.0],
        "branch_costs": [0.01, 0.01],
        "num_exits": 1,
        "min_accuracy": 0.5,
        "thresholds": [0.5],
    }
    with pytest.raises(PlacementError, match=message):
        select_exits(**{**arguments, **changes})
