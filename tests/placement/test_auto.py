"""The default placement: candidates at equal distances, none where an exit cannot pay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Candidate, CostProfile, PlacementError, place
from placement.strategies import LEAST_SAVING, MAX_CANDIDATES, auto


def profile(flops, total):
    candidates = tuple(Candidate(f"b{i}", f, 0, 0) for i, f in enumerate(flops))
    return CostProfile("net", candidates, total, 0, 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(0, 200))
def test_candidates_are_distinct_ordered_and_can_pay(values, rest):
    flops = sorted(values)
    net = profile(flops, flops[-1] + rest)
    found = place(net)
    assert found.strategy == "auto"
    assert list(found.indices) == sorted(set(found.indices))
    usable = [i for i, share in enumerate(net.shares) if share <= 1 - LEAST_SAVING]
    if usable:
        assert set(found.indices) <= set(usable)
        assert len(found) == min(len(usable), MAX_CANDIDATES)
    else:
        assert found.indices == (0,)
    for number in {1, (len(flops) + 1) // 2, len(flops)}:
        assert len(auto(net, number)) == number


def test_a_deep_network_does_not_get_an_exit_at_each_block():
    net = profile([2 * i for i in range(1, 51)], 100)
    found = place(net)
    assert len(found) == MAX_CANDIDATES
    gaps = [(b - a) for a, b in zip(found.indices, found.indices[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1
    for index, share in zip(place(net, "auto", 3).indices, (0.25, 0.5, 0.75), strict=True):
        assert abs(net.shares[index] - share) < 0.011


def test_boundaries_at_the_end_are_left_out():
    net = profile([10, 50, 80, 98, 100], 100)
    assert place(net).names == ("b0", "b1", "b2")
    assert place(net, "auto", 5).names == ("b0", "b1", "b2", "b3", "b4")
    with pytest.raises(PlacementError, match="only 5 block boundaries"):
        place(net, "auto", 6)
