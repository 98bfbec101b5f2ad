"""Operating points within budgets, and the area under the frontier, against brute force."""

from itertools import pairwise

import pytest
from comparisons import method_run, point
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def points(draw):
    # Costs are far enough apart that no slope between them overflows.
    costs = st.one_of(
        st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 1500).map(lambda n: n / 1000)
    )
    pairs = draw(st.lists(st.tuples(costs, st.floats(0, 1)), max_size=7))
    return [point(*pair) for pair in pairs]


@given(points(), st.floats(0, 1.6), st.floats(0, 1), st.floats(0, 0.3))
def test_best_points_within_a_budget_and_an_accuracy_drop(found, budget, backbone, drop):
    run = method_run(found)
    affordable = [p.accuracy for p in found if p.relative_flops <= budget + 1e-9]
    assert run.accuracy_within(budget) == (max(affordable) if affordable else None)
    accurate = [p.relative_flops for p in found if p.accuracy >= backbone - drop - 1e-9]
    assert run.flops_within(backbone, drop) == (min(accurate) if accurate else None)


@given(points(), st.integers(1, 20), st.floats(0, 1))
def test_area_is_that_under_the_best_mixture_of_two_points(found, classes, backbone):
    corners = [(0.0, 1 / classes), (1.0, backbone)]
    corners += [(p.relative_flops, p.accuracy) for p in found if p.relative_flops <= 1]

    def reached(budget):
        """Best accuracy of a mixture of two corners within the budget."""
        best = [y for x, y in corners if x <= budget]
        for x, y in corners:
            for u, v in corners:
                if x < budget < u:
                    best.append(y + (v - y) * (budget - x) / (u - x))
        return max(best)

    # Between neighbouring corners the frontier is linear.
    places = sorted({x for x, _ in corners})
    area = sum(
        (right - left) * (reached(left) + reached(right)) / 2 for left, right in pairwise(places)
    )
    assert method_run(found).area(classes, backbone) == pytest.approx(area, abs=1e-9)


def test_areas_in_closed_form():
    assert method_run([]).area(10, 0.9) == pytest.approx((0.1 + 0.9) / 2)
    assert method_run([point(0.5, 0.9)]).area(10, 0.9) == pytest.approx(0.25 + 0.45)
    assert method_run([point(0.5, 0.3)]).area(10, 0.9) == pytest.approx(0.5)
    # A point above the backbone is available to every larger budget; one beyond its cost to none.
    assert method_run([point(0.0, 0.95)]).area(10, 0.9) == pytest.approx(0.95)
    assert method_run([point(1.2, 1.0)]).area(10, 0.9) == pytest.approx(0.5)
