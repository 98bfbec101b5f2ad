"""Placements that count measured seconds."""

import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TinyNet, images, tiny

import leenet_fx
import placement
from leenet_fx import InputError
from placement import Candidate, CostProfile, PlacementError, UnknownNameError


def timed_profile(seconds, total, flops=None):
    flops = flops or range(1, len(seconds) + 1)
    candidates = tuple(
        Candidate(f"b{i}", flops=f, params=i, bytes=i, seconds=s)
        for i, (f, s) in enumerate(zip(flops, seconds, strict=True))
    )
    return CostProfile("net", candidates, len(seconds) + 1, 99, 99, seconds=total)


@settings(deadline=None)
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


def test_seconds_that_were_not_measured_are_rejected():
    backbone = CostProfile("net", (Candidate("a", 1, 1, 1), Candidate("b", 2, 2, 2)), 3, 3, 3)
    with pytest.raises(PlacementError, match="not measured"):
        placement.place(backbone, "linear", cost="seconds")
    with pytest.raises(UnknownNameError, match="Did you mean 'seconds'"):
        placement.place(backbone, "linear", cost="second")
    with pytest.raises(PlacementError, match="not all known"):
        CostProfile("net", (Candidate("a", 1, 1, 1, seconds=1.0),), 3, 3, 3)


def test_attach_measures_seconds_for_placements():
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


class OverridesTrain(TinyNet):
    def train(self, mode=True):
        return super().train(mode)


class MakesSize(TinyNet):
    """Only torch.export captures it: torch.Size takes no symbolic values."""

    def forward(self, x):
        return super().forward(x.view(torch.Size(x.shape)))


@pytest.mark.parametrize("model", [OverridesTrain(), MakesSize()], ids=["train", "export"])
def test_measuring_seconds_traces_and_warns_once(model, caplog):
    records = {}
    for cost in ("flops", "seconds"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            leenet_fx.attach(model, "linear", example_inputs=images(1, 3, 16, 16), cost=cost)
        records[cost] = [record.getMessage() for record in caplog.records]
    assert len(records["flops"]) == 1
    assert records["seconds"] == records["flops"]


@pytest.mark.parametrize("mode", [True, False])
def test_measuring_seconds_changes_neither_modes_nor_statistics(mode):
    model = tiny().train(mode)
    model.blocks[0].bn.train(not mode)
    example = images(2, 3, 16, 16)
    ee = leenet_fx.attach(model, "linear", example_inputs=example, cost="seconds", copy=False)
    state = tiny().state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert ee.training == mode
    assert ee.get_submodule("blocks.0.bn").training != mode
    assert ee.get_submodule("blocks.1.bn").training == mode
