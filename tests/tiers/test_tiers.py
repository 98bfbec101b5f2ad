"""Tiers in one process: all kinds of values at cuts, codings, links, and what does not fit."""

import copy
import math
import socket
import time

import pytest
import torch
from helpers import half_leave
from networks import close, images
from tier_helpers import X, assert_same, attached, first_tier, serving
from torch import nn

import leenet_fx
from leenet_fx import (
    InputError,
    MaxProbability,
    ModeError,
    NeverExit,
    Patience,
    PlacementError,
    UnknownNameError,
)
from leenet_fx.tiers.chain import Chain, NextTier, TierMismatchError
from leenet_fx.tiers.coding import expand, shrink
from leenet_fx.tiers.cuts import StageCosts, choose_stages, measure_stages
from leenet_fx.tiers.link import LinkError, address_of, listen, parse_address
from leenet_fx.tiers.server import TierServer
from leenet_fx.tiers.tier import Tier, parse_stages

KINDS = {
    "gates": {},
    "history": {"branch_options": {"gate": "history"}},
    "cascade": {"method": "ztw"},
    "state": {"branch": "side"},
}


def networks():
    found = {name: attached(**options) for name, options in KINDS.items()}
    found["patience"] = attached()
    found["patience"].policy = Patience(1)
    found["disabled"] = attached()
    found["disabled"].policy = NeverExit()
    found["first disabled"] = attached()
    found["first disabled"].policy = MaxProbability([math.inf, 0.2, 0.2, 0.2])
    found["channels last"] = attached().to(memory_format=torch.channels_last)
    found["float64"] = attached().double()
    return found


NETWORKS = networks()


def images_for(ee):
    weight = ee.stem.weight if hasattr(ee, "stem") else next(ee.parameters())
    return X.to(weight.dtype)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cuts", [(0,), (1, 2, 2, 4)])
def test_tiers_answer_as_predict_does_whatever_is_passed_on(name, cuts):
    ee = NETWORKS[name]
    x = images_for(ee)
    if name == "channels last":
        x = x.to(memory_format=torch.channels_last)
    with serving(ee, *cuts) as address:
        device = first_tier(ee, cuts[0], address)
        expected = ee.predict(x)
        assert_same(device.predict(x), expected)
        assert_same(device.predict(x[:1]), ee.predict(x[:1]))
        device.close()


class Windows(nn.Module):
    """Carries past its blocks an integer, and windows of which each sample has four."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(10, 5)

    def forward(self, x):
        size = x.shape[0]
        windows = x[:, :2].reshape(size * 4, 2, 8, 8)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).relu()
        folded = windows.mean((2, 3)).reshape(size, 4, 2).mean(1)
        return self.fc(torch.cat([x.mean((2, 3)), folded], 1))


def test_windows_and_sizes_at_a_cut_are_restored():
    ee = leenet_fx.attach(Windows(), [0, 1], example_inputs=X[:1], blocks=["blocks.*"]).eval()
    kinds = [dim.kind for dim in ee.spec.cuts[0].batch_dims]
    assert "size" in kinds
    assert any(dim.is_folded for dim in ee.spec.cuts[0].batch_dims)
    ee = half_leave(ee, X)
    with serving(ee, 1, 2) as address:
        device = first_tier(ee, 1, address)
        assert_same(device.predict(X), ee.predict(X))
        device.close()


@pytest.mark.parametrize(("coding", "factor"), [("float16", 2), ("uint8", 4)])
def test_smaller_dtypes_have_fewer_bytes_and_nearly_the_same_answers(coding, factor):
    ee = NETWORKS["disabled"]
    with serving(ee, 1) as address:
        exact, coded = (first_tier(ee, 1, address, coding=c) for c in ("unchanged", coding))
        expected, found = exact.predict(X), coded.predict(X)
        assert expected.sent[0] / found.sent[0] == pytest.approx(factor, rel=0.02)
        assert close(found.prediction.logits, expected.prediction.logits, 0.02)
        assert not torch.equal(found.prediction.logits, expected.prediction.logits)
        exact.close()
        coded.close()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_uint8_has_the_stated_error_for_each_sample(axis, scale):
    values = (images(3, 5, 7, seed=1) * scale * torch.tensor([1.0, 10, 0]).view(3, 1, 1)).movedim(
        0, axis
    )
    sent, ranges = shrink(values, axis, "uint8", "x")
    assert sent.dtype == torch.uint8
    found = expand(sent, axis, values.dtype, ranges).movedim(axis, 0)
    for restored, original in zip(found, values.movedim(axis, 0), strict=True):
        bound = (original.max() - original.min()) / 510
        assert (restored - original).abs().max() <= bound * 1.001


def test_float16_has_the_stated_error():
    values = images(4, 100) * torch.logspace(-9, 4, 100)
    found = expand(*_sent(values))
    assert ((found - values).abs() <= (values.abs() * 2**-11).clamp(min=2**-25)).all()


def _sent(values):
    sent, ranges = shrink(values, 0, "float16", "x")
    assert sent.dtype == torch.float16
    return sent, 0, values.dtype, ranges


@pytest.mark.parametrize(
    ("coding", "value", "message"),
    [
        ("float16", 7e4, "beyond ±65504"),
        ("float16", -1e30, "beyond ±65504"),
        ("uint8", math.nan, "NaN or infinite"),
        ("uint8", -math.inf, "NaN or infinite"),
    ],
)
def test_values_that_a_dtype_cannot_express_are_refused(coding, value, message):
    values = torch.ones(2, 3)
    values[1, 2] = value
    with pytest.raises(InputError, match=f"'layer' has .*{message}"):
        shrink(values, 0, coding, "layer")


def test_a_link_takes_the_time_of_its_bandwidth_and_counts_its_bytes():
    ee = NETWORKS["disabled"]
    with serving(ee, 1) as address:
        device = first_tier(ee, 1, address, bandwidth=4.0)
        start = time.monotonic()
        found = device.predict(X)
        seconds = time.monotonic() - start
        # Only a lower bound: a busy machine is no failure.
        assert seconds >= found.sent[0] * 8 / 4e6
        assert found.sent[0] > X[:, :1].nbytes
        device.close()


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "10"])
def test_bandwidths_and_timeouts_must_be_above_0(value):
    with pytest.raises(InputError, match=r"bandwidth of a link \(Mbit/s\) must be .* above 0"):
        NextTier("7000", bandwidth=value)
    with pytest.raises(InputError, match=r"timeout \(seconds\) must be .* above 0"):
        NextTier("7000", timeout=value)


def test_a_bandwidth_too_low_for_the_timeout_counts_as_a_tier_that_is_gone(caplog):
    ee = NETWORKS["gates"]
    with serving(ee, 1) as address:
        device = first_tier(ee, 1, address, bandwidth=0.1, timeout=2.0)
        assert device.predict(X[:0]).fallback.shape == (0,)
        found = device.predict(X)
        assert torch.equal(found.fallback, ee.predict(X).exit_index >= 1)
        assert "longer than the timeout of 2 s" in caplog.text
        device.close()


def test_another_network_policy_or_stage_is_an_error_at_both_ends_of_a_chain():
    ee = NETWORKS["gates"]
    other = attached(seed=5)
    policy = copy.deepcopy(ee)
    policy.policy = MaxProbability(0.9)
    weights = copy.deepcopy(ee)
    with torch.no_grad():
        weights.fc.bias[0] += 1e-3
    with serving(ee, 1, 2) as address:
        for network in (other, weights, NETWORKS["cascade"]):
            with pytest.raises(TierMismatchError, match=r"another network runs here \(fing"):
                first_tier(network, 1, address)
        with pytest.raises(TierMismatchError, match="another policy decides here"):
            first_tier(policy, 1, address)
        with pytest.raises(TierMismatchError, match=r"begins with stage 1, .* stage 2"):
            first_tier(ee, 2, address)
        with pytest.raises(TierMismatchError, match="another network"):
            TierServer(Tier(other, 0, 1), NextTier(address))


def test_a_tier_without_an_exit_raises_if_the_next_is_gone(caplog):
    ee = NETWORKS["first disabled"]
    with serving(ee, 1, 2) as address:
        device = first_tier(ee, 1, address)
        device.predict(X)
    device.close()
    with pytest.raises(LinkError, match="this one has no exit that could answer"):
        device.predict(X)


def test_only_the_last_tier_has_no_next():
    ee = NETWORKS["gates"]
    with pytest.raises(InputError, match="0:2 of 5 has no next tier"):
        Chain(Tier(ee, 0, 2))
    with pytest.raises(InputError, match="0:5 of 5 has a next tier"):
        Chain(Tier(ee, 0, 5), NextTier("7000"))
    assert_same(Chain(Tier(ee, 0, 5)).predict(X), ee.predict(X))
    with pytest.raises(InputError, match="Images enter at stage 0"):
        Chain(Tier(ee, 1, 5)).predict(X)


@pytest.mark.parametrize("stages", [(-1, 2), (0, 6), (3, 2), (5, 5)])
def test_stages_that_do_not_exist_are_refused(stages):
    with pytest.raises(InputError, match="stages 0 to 4"):
        Tier(NETWORKS["gates"], *stages)


def test_training_mode_is_refused():
    with pytest.raises(ModeError, match="evaluation mode"):
        Tier(copy.deepcopy(NETWORKS["gates"]).train(), 0, 1)


@pytest.mark.parametrize("text", ["", "1", "1:", ":2", "a:b", "1:2:3", "-1:2", "1.0:2", "٣:٤"])
def test_stages_are_two_numbers(text):
    with pytest.raises(InputError, match="Expected stages such as 0:2"):
        parse_stages(text)


def test_addresses():
    assert parse_address("7000") == ("127.0.0.1", 7000)
    assert parse_address("[::1]:7000") == ("::1", 7000)
    assert parse_address("host:1") == ("host", 1)
    for text in ("", "host", "host:", "host:0", "host:65536", "host:-1", "host:a", "host:٣"):
        with pytest.raises(InputError, match="Expected an address such as"):
            parse_address(text)
    with pytest.raises(UnknownNameError, match="float16"):
        NextTier("7000", coding="float61")


def test_a_port_in_use_and_an_address_elsewhere_are_errors():
    with listen("0") as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match=r"Port \d+ of 127.0.0.1 is in use"):
            listen(address_of(listening))
    with pytest.raises(InputError, match=r"Cannot listen on port 7000 of '192\.0\.2\.1'"):
        listen("192.0.2.1:7000")


def test_nothing_that_listens_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(LinkError, match="start the last tier first"):
        first_tier(NETWORKS["gates"], 1, f"127.0.0.1:{port}")


def test_images_of_another_size_are_refused():
    ee = NETWORKS["gates"]
    with serving(ee, 1) as address:
        device = first_tier(ee, 1, address)
        with pytest.raises(
            InputError, match="images of the size that the network was attached for"
        ):
            device.predict(images(8, 3, 32, 32))
        assert_same(device.predict(X), ee.predict(X))
        device.close()


COSTS = StageCosts(("a", "b"), (0.010, 0.020, 0.030), (100_000, 10_000, 2_000), (0.5, 0.2))


def seconds_of(stages, speeds, bandwidths, latencies):
    """Expected time of given stages, tier by tier."""
    reached = [1.0, *COSTS.continuing]
    total = 0.0
    for (first, stop), speed in zip(stages, speeds, strict=False):
        total += sum(reached[i] * COSTS.seconds[i] / speed for i in range(first, stop))
    for (_, stop), mbit, latency in zip(stages[:-1], bandwidths, latencies, strict=False):
        total += reached[stop] * (latency + COSTS.sent_bytes[stop] * 8 / (mbit * 1e6))
    return total


@pytest.mark.parametrize("mbit", [0.01, 0.5, 2.0, 10.0, 1e4])
@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_the_stages_of_tiers_are_those_of_the_shortest_time(mbit, latency):
    speeds, bandwidths, latencies = (1.0, 4.0, 20.0), (mbit, 3 * mbit), (latency, latency)
    found = choose_stages(COSTS, speeds=speeds, bandwidths=bandwidths, latencies=latencies)
    possible = [
        [pair for pair in ((0, a), (a, b), (b, 3)) if pair[0] < 3]
        for a in range(4)
        for b in range(a, 4)
    ]
    times = [seconds_of(stages, speeds, bandwidths, latencies) for stages in possible]
    assert found.seconds == pytest.approx(min(times), rel=1e-6)
    assert list(found.stages) in possible
    assert seconds_of(found.stages, speeds, bandwidths, latencies) == pytest.approx(found.seconds)


def test_measured_stages_have_the_bytes_and_shares_of_real_tiers():
    ee = NETWORKS["gates"]
    costs = measure_stages(ee, X, coding="float16")
    exits = ee.predict(X).exit_index
    shares = [float((exits > index).float().mean()) for index in range(4)]
    assert costs.continuing == pytest.approx(shares)
    assert all(seconds > 0 for seconds in costs.seconds)
    with serving(ee, 2) as address:
        device = first_tier(ee, 2, address, coding="float16")
        sent = [sum(device.predict(image).sent) for image in X.split(1)]
        device.close()
    assert sum(sent) / sum(map(bool, sent)) == pytest.approx(costs.sent_bytes[2], abs=30)


def test_costs_that_do_not_fit_are_errors():
    with pytest.raises(InputError, match="there are none"):
        measure_stages(NETWORKS["gates"], X[:0])
    with pytest.raises(UnknownNameError, match="float16"):
        measure_stages(NETWORKS["gates"], X, coding="half")
    with pytest.raises(InputError, match="a latency for each of 1 links, got 2"):
        choose_stages(COSTS, speeds=[1, 2], bandwidths=[1], latencies=[0, 0])
    for speeds, bandwidths in (([1, 2], [0]), ([0, 1], [1]), ([1, 2], []), ([1, 2], [math.nan])):
        with pytest.raises(PlacementError):
            choose_stages(COSTS, speeds=speeds, bandwidths=bandwidths)
