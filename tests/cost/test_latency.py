"""Times of batches, computed from measured times of their parts."""

import itertools

import pytest
from cost_helpers import random_latency
from hypothesis import given
from hypothesis import strategies as st

from leenet_fx import InputError
from leenet_fx.cost.latency import Latency, interpolate, mean_of_binomial


def by_hand(known: Latency, exits: list[int]) -> float:
    """The seconds of a batch whose samples exit at the listed exits, added up stage by stage."""

    def at(times, count):
        return interpolate(known.batch_sizes, times, count) if count else 0.0

    spent = 0.0
    for index in range(known.num_exits):
        remaining = sum(e >= index for e in exits)
        exiting = sum(e == index for e in exits)
        spent += at(known.stage_and_exit[index], remaining) + at(
            known.classification[index], exiting
        )
        if exiting:
            spent += at(known.regrouping[index], remaining - exiting)
    return spent + at(known.stages[-1], sum(e == known.num_exits for e in exits))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 9))
def test_the_time_of_a_batch_is_the_sum_of_what_it_runs(exits, seed):
    known = random_latency(3, seed)
    counts = [exits.count(exit_index) for exit_index in range(4)]
    assert known.batch_seconds(counts) == pytest.approx(by_hand(known, exits))


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_the_mean_time_is_that_of_all_batches_there_are(weights, size, seed):
    known = random_latency(2, seed)
    shares = [weight / sum(weights) for weight in weights]
    expected = 0.0
    for exits in itertools.product(range(3), repeat=size):
        chance = 1.0
        for exit_index in exits:
            chance *= shares[exit_index]
        expected += chance * by_hand(known, list(exits))
    assert known.expected_seconds(shares, size) == pytest.approx(expected)


@given(st.integers(1, 40), st.floats(0, 1))
def test_a_mean_over_a_binomial(size, share):
    found = mean_of_binomial(lambda count: count * count, share, size)
    assert found == pytest.approx(size * share * (1 - share) + (size * share) ** 2, abs=1e-9)


def test_between_measured_sizes_time_is_linear():
    assert interpolate((1, 4), (1.0, 7.0), 4) == 7.0
    assert interpolate((1, 4), (1.0, 7.0), 2) == 3.0
    assert interpolate((1, 4), (1.0, 7.0), 6) == 11.0
    assert interpolate((2, 4, 8), (3.0, 5.0, 6.0), 1) == 2.0
    assert interpolate((2, 4, 8), (3.0, 5.0, 6.0), 8) == 6.0
    assert interpolate((8,), (4.0,), 2) == 1.0
    assert interpolate((8,), (4.0,), 0) == 0.0
    assert interpolate((2, 4), (1.0, 9.0), 1) == 0.0


def test_counts_and_shares_that_do_not_fit():
    known = random_latency(2)
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0.0]):
        with pytest.raises(InputError, match="shares"):
            known.expected_seconds(wrong, 4)
    with pytest.raises(InputError, match="counts"):
        known.batch_seconds([1, 2])
    with pytest.raises(InputError, match="batch_size"):
        known.expected_seconds([1.0, 0.0, 0.0], 0)


def test_seconds_per_exit_are_sums_over_the_stages_before():
    known = random_latency(2)
    size = 5
    first = known.stage_and_exit[0][2] + known.classification[0][2]
    second = known.stage_and_exit[0][2] + known.stage_and_exit[1][2] + known.classification[1][2]
    last = known.stage_and_exit[0][2] + known.stage_and_exit[1][2] + known.stages[2][2]
    assert known.seconds_per_exit(size) == pytest.approx([first / size, second / size, last / size])
