"""Turns of alternating updates, against a walk through all batches."""

import logging

from hypothesis import given
from hypothesis import strategies as st

from leenet_fx.methods.phases import Phase, Update
from leenet_fx.training.turns import turn_at, warn_of_short_updates

UPDATES = tuple(Update((group,), None) for group in ("classifiers", "gates", "ensembles"))

phases = st.builds(
    lambda count, turns, period: Phase("alternating", UPDATES[:count], turns=turns, period=period),
    st.integers(2, 3),
    st.integers(2, 30),
    st.none() | st.integers(1, 50),
) | st.just(Phase("exits", UPDATES[:1]))


@given(phases, st.integers(1, 300))
def test_turns_follow_each_other_and_cover_the_phase(phase, total):
    position, updates = 0, []
    while position < total:
        turn = turn_at(phase, position, total)
        assert turn.start == position
        assert turn.length >= 1
        # All batches of the turn find it.
        for inside in (position, position + turn.length // 2, turn.end - 1):
            assert turn_at(phase, inside, total) == turn
        updates.append(turn.update)
        position = turn.end
    assert position == total
    # In the order of the updates, over and over.
    assert updates == [index % len(phase.updates) for index in range(len(updates))]


@given(st.integers(2, 3), st.integers(2, 30), st.integers(3, 300))
def test_without_a_period_each_update_has_its_share_of_the_batches(count, turns, total):
    phase = Phase("alternating", UPDATES[:count], turns=turns)
    counts = [0] * count
    for position in range(total):
        counts[turn_at(phase, position, total).update] += 1
    assert max(counts) - min(counts) <= max(turns // count, 1)


@given(st.integers(2, 3), st.integers(1, 50), st.integers(0, 300))
def test_a_period_needs_no_number_of_batches(count, period, position):
    turn = turn_at(Phase("alternating", UPDATES[:count], period=period), position, None)
    assert turn.update == position // period % count
    assert turn.start <= position < turn.end
    assert turn.length == period


def warnings(phase, trained, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        warn_of_short_updates(phase, trained)
    return [record.getMessage() for record in caplog.records]


def test_an_update_with_under_a_quarter_of_the_batches_is_named(caplog):
    """264 batches, turns of 200: gates have the last 64, which is 24 %."""
    phase = Phase("alternating", UPDATES[:2], period=200)
    (message,) = warnings(phase, [200, 64], caplog)
    assert "Phase 'alternating' trained gates in only 24 % of its batches" in message
    assert not warnings(phase, [200, 70], caplog)
    assert "classifiers in only 0 %" in warnings(phase, [0, 9], caplog)[0]
    assert not warnings(phase, [0, 0], caplog)
    assert not warnings(Phase("exits", UPDATES[:1]), [264], caplog)
    assert len(warnings(Phase("three", UPDATES), [100, 10, 10], caplog)) == 2
