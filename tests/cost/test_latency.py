"""Measured time: what is predicted from it, and what counts by it."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from helpers import half_leave
from hypothesis import given
from hypothesis import strategies as st
from networks import images, tiny

import leenet_fx
import placement
from leenet_fx import GateThreshold, InputError, MaxProbability, ModeError, PlacementError
from leenet_fx.cost.latency import Latency, interpolate, mean_of_binomial
from placement import Candidate, CostProfile, UnknownNameError


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


def table(exits: int, seed: int = 0) -> Latency:
    """Times drawn at random for batches of 1, 2 and 5."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int):
        times = torch.rand(count, 3, generator=generator).cumsum(1)
        return tuple(map(tuple, times.tolist()))

    return Latency(
        device="a processor",
        threads=1,
        dtype="float32",
        reads="gate",
        compiled=False,
        batch_sizes=(1, 2, 5),
        reference=2,
        backbone=draw(1)[0],
        stages=draw(exits + 1),
        stage_and_exit=draw(exits),
        classification=draw(exits),
        regrouping=draw(exits),
    )


def by_hand(known: Latency, leaving_at: list[int]) -> float:
    """The seconds of a batch whose samples leave where the list says, added up stage by stage."""

    def at(times, count):
        return interpolate(known.batch_sizes, times, count) if count else 0.0

    spent = 0.0
    for index in range(known.num_exits):
        arrive = sum(e >= index for e in leaving_at)
        leave = sum(e == index for e in leaving_at)
        spent += at(known.stage_and_exit[index], arrive) + at(known.classification[index], leave)
        if leave:
            spent += at(known.regrouping[index], arrive - leave)
    return spent + at(known.stages[-1], sum(e == known.num_exits for e in leaving_at))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(0, 9))
def test_the_time_of_a_batch_is_the_sum_of_what_it_runs(leaving_at, seed):
    known = table(3, seed)
    counts = [leaving_at.count(outlet) for outlet in range(4)]
    assert known.batch_seconds(counts) == pytest.approx(by_hand(known, leaving_at))


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_the_mean_time_is_that_of_all_batches_there_are(weights, size, seed):
    known = table(2, seed)
    shares = [weight / sum(weights) for weight in weights]
    expected = 0.0
    for leaving_at in itertools.product(range(3), repeat=size):
        chance = 1.0
        for outlet in leaving_at:
            chance *= shares[outlet]
        expected += chance * by_hand(known, list(leaving_at))
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


def test_distributions_that_are_none_are_refused():
    known = table(2)
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0.0]):
        with pytest.raises(InputError, match="shares"):
            known.expected_seconds(wrong, 4)
    with pytest.raises(InputError, match="counts"):
        known.batch_seconds([1, 2])
    with pytest.raises(InputError, match="batch_size"):
        known.expected_seconds([1.0, 0.0, 0.0], 0)


@pytest.mark.parametrize("options", [{}, {"method": "ztw"}, {"branch_options": {"gate": "dial"}}])
def test_profile_measures_every_piece_and_keeps_it_in_the_cost_table(options):
    ee = attached(**options)
    assert ee.costs.latency is None
    with pytest.raises(InputError, match=r"leenet_fx\.profile"):
        ee.costs.relative("seconds")
    found = leenet_fx.profile(ee, batch_sizes=(3, 1), seconds=0)
    assert found.batch_sizes == (1, 3)
    assert found.reference == 3
    assert found.device
    assert found.threads == torch.get_num_threads()
    assert [len(found.stages), len(found.stage_and_exit), len(found.classification)] == [5, 4, 4]
    for times in (found.backbone, *found.stages, *found.stage_and_exit, *found.classification, *found.regrouping):
        assert all(seconds > 0 for seconds in times)
    assert ee.costs.latency == found
    relative = ee.costs.relative("seconds")
    assert len(relative) == 5
    assert relative[-1] == pytest.approx(found.seconds_per_exit()[-1] / found.backbone_seconds())
    assert copy.deepcopy(ee).latency == pickle.loads(pickle.dumps(ee)).latency == found
    assert json.loads(json.dumps(ee.costs.to_dict()))["latency"]["device"] == found.device
    assert "stage 4" in found.summary()


def test_rows_add_up_what_a_sample_passes():
    known = table(2)
    size = 5
    first = known.stage_and_exit[0][2] + known.classification[0][2]
    second = known.stage_and_exit[0][2] + known.stage_and_exit[1][2] + known.classification[1][2]
    last = known.stage_and_exit[0][2] + known.stage_and_exit[1][2] + known.stages[2][2]
    assert known.seconds_per_exit(size) == pytest.approx([first / size, second / size, last / size])


def test_seconds_count_only_where_exits_decide_as_they_did():
    ee = attached()
    leenet_fx.profile(ee, batch_sizes=(2,), seconds=0)
    assert ee.costs.latency.reads == "gate"
    ee.policy = GateThreshold(0.0)
    ee.costs.relative("seconds")
    ee.policy = MaxProbability(0.5)
    with pytest.raises(InputError, match="logits"):
        ee.costs.relative("seconds")
    leenet_fx.profile(ee, batch_sizes=(2,), seconds=0)
    assert ee.costs.latency.reads == "logits"


def test_profile_refuses_what_it_cannot_measure():
    with pytest.raises(ModeError, match="evaluation"):
        leenet_fx.profile(attached().train())
    with pytest.raises(ModeError, match="meta"):
        leenet_fx.profile(attached().to("meta"))
    for wrong in ((), (0,), (1.5,), (True,)):
        with pytest.raises(InputError, match="batch_sizes"):
            leenet_fx.profile(attached(), batch_sizes=wrong)


def test_gates_are_fitted_to_the_seconds_that_were_measured():
    ee = attached()
    x = images(64, 3, 16, 16)
    data = [(x, torch.arange(64) % 5)]
    known = table(4).to_dict() | {"batch_sizes": (1,), "reference": 1, "plain": (1.0,)}
    known.pop("unit")
    nothing, dear = ((0.0,),) * 4, ((9.0,),) * 4
    left = []
    for leaving, last in ((dear, (0.0,)), (nothing, (9.0,))):
        work = copy.deepcopy(ee)
        times = {"stages": (*nothing, last), "stage_and_exit": nothing, "classification": leaving}
        work.latency = Latency(**known | times | {"regrouping": nothing})
        leenet_fx.fit(work, data, method="leenet", alpha=0.9, cost="seconds", epochs=40, seed=0)
        left.append(float((work.predict(x).exit_index < 4).float().mean()))
    assert left[0] < 0.2
    assert left[1] > 0.8


# --- placement ----------------------------------------------------------------------------------


def timed_profile(seconds, total, flops=None):
    flops = flops or range(1, len(seconds) + 1)
    candidates = tuple(
        Candidate(f"b{i}", flops=f, params=i, bytes=i, seconds=s)
        for i, (f, s) in enumerate(zip(flops, seconds, strict=True))
    )
    return CostProfile("net", candidates, len(seconds) + 1, 99, 99, seconds=total)


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=12), st.integers(1, 1000))
def test_placements_by_seconds_are_those_by_flops_of_a_network_with_such_flops(steps, rest):
    up_to = list(itertools.accumulate(steps))
    total = up_to[-1] + rest
    # Divided by a power of two, shares are the same to the last bit.
    profile = timed_profile([at / 1024 for at in up_to], total / 1024)
    same = CostProfile(
        "net", tuple(Candidate(f"b{i}", at, i, i) for i, at in enumerate(up_to)), total, 99, 99
    )
    for strategy in ("linear", "pareto", "fine", "golden"):
        try:
            expected = placement.place(same, strategy).indices
        except PlacementError:
            continue
        assert placement.place(profile, strategy, cost="seconds").indices == expected
    assert CostProfile.from_json(profile.to_json()) == profile


def test_seconds_that_nobody_measured_place_nothing():
    backbone = CostProfile("net", (Candidate("a", 1, 1, 1), Candidate("b", 2, 2, 2)), 3, 3, 3)
    with pytest.raises(PlacementError, match="not measured"):
        placement.place(backbone, "linear", cost="seconds")
    with pytest.raises(UnknownNameError, match="Did you mean 'seconds'"):
        placement.place(backbone, "linear", cost="second")
    with pytest.raises(PlacementError, match="not all known"):
        CostProfile("net", (Candidate("a", 1, 1, 1, seconds=1.0),), 3, 3, 3)


def test_attach_measures_where_seconds_are_to_count():
    ee = leenet_fx.attach(tiny(), "linear", example_inputs=images(2, 3, 16, 16), cost="seconds")
    profile = ee.spec.profile
    up_to = [candidate.seconds for candidate in profile.candidates]
    assert up_to == sorted(up_to)
    assert 0 < up_to[0] < up_to[-1] < profile.seconds
    assert ee.spec.placement == placement.place(profile, "linear", cost="seconds")
    backbone = leenet_fx.attach(tiny(), "linear", example_inputs=images(2, 3, 16, 16))
    assert backbone.spec.profile.seconds is None
    model, meta = tiny().to("meta"), images(2, 3, 16, 16).to("meta")
    with pytest.raises(InputError, match="meta"):
        leenet_fx.attach(model, "linear", example_inputs=meta, cost="seconds")


def test_predictions_of_a_real_network_add_up_to_its_own_pieces():
    ee = half_leave(attached(), images(16, 3, 16, 16))
    found = leenet_fx.profile(ee, batch_sizes=(1, 4, 16), seconds=0)
    everyone = found.batch_seconds([16, 0, 0, 0, 0])
    assert everyone == pytest.approx(found.stage_and_exit[0][2] + found.classification[0][2])
    nobody = found.batch_seconds([0, 0, 0, 0, 16])
    assert nobody == pytest.approx(sum(times[2] for times in found.stage_and_exit) + found.stages[4][2])
