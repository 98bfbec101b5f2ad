"""Exits for classes, for a latency, and in any number, against all subsets sample by sample."""

import math
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selection import measure, problem

from placement import PlacementError, class_specific, hapi, select_exits

THRESHOLDS = [0.25, 0.5, 0.75, math.inf]


def subsets(number, num_exits=None):
    sizes = range(number + 1) if num_exits is None else [num_exits]
    return chain.from_iterable(combinations(range(number), size) for size in sizes)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 25), st.integers(0, 8))
def test_any_number_of_exits_is_brute_force(seed, number, samples, tenths):
    outputs = problem(seed, samples, number)
    points = [measure(*outputs, s, t) for s in subsets(number) for t in THRESHOLDS]
    accurate = [cost for accuracy, cost in points if accuracy >= tenths / 10]
    options = {"min_accuracy": tenths / 10, "thresholds": THRESHOLDS}
    if not accurate:
        with pytest.raises(PlacementError, match="any exits"):
            select_exits(*outputs, None, **options)
        return
    found = select_exits(*outputs, None, **options)
    assert found.cost == pytest.approx(min(accurate))
    assert measure(*outputs, found.indices, found.threshold) == pytest.approx(
        (found.accuracy, found.cost)
    )
    try:
        greedy = select_exits(*outputs, None, exact_up_to=0, **options)
    except PlacementError:
        return
    assert not greedy.exact
    assert greedy.cost >= found.cost - 1e-9
    assert measure(*outputs, greedy.indices, greedy.threshold) == pytest.approx(
        (greedy.accuracy, greedy.cost)
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 25), st.data())
def test_hapi_is_brute_force_both_ways(seed, number, samples, data):
    outputs = problem(seed, samples, number)
    num_exits = data.draw(st.none() | st.integers(1, number))
    points = [measure(*outputs, s, t) for s in subsets(number, num_exits) for t in THRESHOLDS]
    limit = data.draw(st.sampled_from(sorted(cost for _, cost in points)))
    options = {"thresholds": THRESHOLDS, "num_exits": num_exits}
    found = hapi(*outputs, max_seconds=limit + 1e-9, **options)
    best = max(accuracy for accuracy, cost in points if cost <= limit + 1e-9)
    assert found.accuracy == pytest.approx(best)
    fastest = min(cost for accuracy, cost in points if accuracy >= best - 1e-9)
    assert found.cost == pytest.approx(fastest)
    assert hapi(*outputs, min_accuracy=best, **options).cost == pytest.approx(fastest)


def test_hapi_names_a_target_that_is_out_of_reach():
    outputs = ([[0.9]], [[True, True]], [1.0, 2.0], [0.5])
    with pytest.raises(PlacementError, match=r"at least 1\.5 s"):
        hapi(*outputs, max_seconds=1.2, thresholds=[0.5])
    with pytest.raises(PlacementError, match="one of max_seconds and min_accuracy"):
        hapi(*outputs, thresholds=[0.5])
    with pytest.raises(PlacementError, match="one of max_seconds and min_accuracy"):
        hapi(*outputs, max_seconds=2.0, min_accuracy=0.5, thresholds=[0.5])


def measure_classes(confidence, predicted, labels, costs, branches, subset, threshold, classes):
    """Accuracy of all samples, and mean cost of those of some classes."""
    right, spent = 0, []
    for row, guesses, label in zip(confidence, predicted, labels, strict=True):
        total = 0.0
        for index in subset:
            total += branches[index]
            if row[index] >= threshold and guesses[index] in classes:
                total, guess = total + costs[index], guesses[index]
                break
        else:
            total, guess = total + costs[-1], guesses[-1]
        right += guess == label
        if label in classes:
            spent.append(total)
    return right / len(labels), sum(spent) / len(spent)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(3, 25), st.integers(0, 8), st.data())
def test_class_specific_is_brute_force(seed, number, samples, tenths, data):
    confidence, correct, costs, branches = problem(seed, samples, number)
    labels = [index % 3 for index in range(samples)]
    predicted = [
        [label if hit else (label + 1) % 3 for hit in row]
        for row, label in zip(correct, labels, strict=True)
    ]
    classes = data.draw(st.sets(st.integers(0, 2), min_size=1))
    num_exits = data.draw(st.none() | st.integers(1, number))
    points = [
        measure_classes(confidence, predicted, labels, costs, branches, s, t, classes)
        for s in subsets(number, num_exits)
        for t in THRESHOLDS
    ]
    accurate = [cost for accuracy, cost in points if accuracy >= tenths / 10]
    arguments = (confidence, predicted, labels, costs, branches, num_exits)
    options = {"classes": classes, "min_accuracy": tenths / 10, "thresholds": THRESHOLDS}
    if not accurate:
        with pytest.raises(PlacementError, match="the final classifier alone has"):
            class_specific(*arguments, **options)
        return
    found = class_specific(*arguments, **options)
    assert found.cost == pytest.approx(min(accurate))
    assert measure_classes(
        confidence, predicted, labels, costs, branches, found.indices, found.threshold, classes
    ) == pytest.approx((found.accuracy, found.cost))


def test_class_specific_needs_samples_of_the_classes():
    arguments = ([[0.9]], [[0, 0]], [0], [1.0, 2.0], [0.1], 1)
    with pytest.raises(PlacementError, match=r"classes \[4\]"):
        class_specific(*arguments, classes={4}, min_accuracy=0, thresholds=[0.5])
    with pytest.raises(PlacementError, match="a label for each"):
        class_specific(
            [[0.9]],
            [[0, 0]],
            [0, 1],
            [1.0, 2.0],
            [0.1],
            1,
            classes={0},
            min_accuracy=0,
            thresholds=[0.5],
        )
