"""Cuts between tiers, against all possible cuts."""

import math
from itertools import combinations_with_replacement

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Candidate, CostProfile, Link, PlacementError, Tier, choose_cuts

MEGA = 10**6


def profile_of(flops, live_bytes):
    candidates = tuple(
        Candidate(f"block{i + 1}", f, f, f, live)
        for i, (f, live) in enumerate(zip(flops[:-1], live_bytes, strict=True))
    )
    return CostProfile("network", candidates, flops[-1], flops[-1], flops[-1])


def seconds_of(cuts, profile, tiers, links, input_bytes, continuing):
    """Time of given cuts, segment by segment."""
    flops = [0, *(c.flops for c in profile.candidates), profile.flops]
    sizes = [input_bytes, *(c.live_bytes for c in profile.candidates)]
    shares = [1, *continuing]
    total = 0.0
    edges = [0, *cuts, len(flops) - 1]
    for tier, start, stop in zip(tiers, edges[:-1], edges[1:], strict=True):
        for boundary in range(start, stop):
            work = flops[boundary + 1] - flops[boundary]
            total += shares[boundary] * work / tier.flops_per_second
    for link, cut in zip(links, cuts, strict=True):
        if cut < len(flops) - 1:
            total += shares[cut] * (link.latency + sizes[cut] / link.bytes_per_second)
    return total


positive = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(0, 7), st.integers(1, 4))
def test_the_shortest_path_is_the_best_of_all_cuts(data, blocks, number):
    steps = data.draw(st.lists(st.integers(1, 100), min_size=blocks + 1, max_size=blocks + 1))
    flops = [sum(steps[: i + 1]) for i in range(blocks + 1)]
    live = data.draw(st.lists(st.integers(1, 100), min_size=blocks, max_size=blocks))
    profile = profile_of(flops, live)
    tiers = [Tier(f"t{i}", data.draw(positive)) for i in range(number)]
    links = [Link(data.draw(positive), data.draw(st.floats(0, 10))) for _ in range(number - 1)]
    shares = st.lists(st.floats(0, 1), min_size=blocks, max_size=blocks)
    continuing = sorted(data.draw(shares), reverse=True)
    found = choose_cuts(profile, tiers, links, input_bytes=50, continuing=continuing)
    expected = min(
        seconds_of(cuts, profile, tiers, links, 50, continuing)
        for cuts in combinations_with_replacement(range(blocks + 2), number - 1)
    )
    assert found.seconds == pytest.approx(expected)
    assert found.seconds == pytest.approx(
        seconds_of(found.cuts, profile, tiers, links, 50, continuing)
    )
    assert found.names == tuple(["input", *profile.names, "output"][cut] for cut in found.cuts)


NETWORK = profile_of([100 * MEGA, 200 * MEGA, 300 * MEGA], [4000, 1000])


def test_with_a_slow_link_all_runs_on_the_device_and_with_a_fast_one_in_the_cloud():
    device, cloud = Tier("device", 1e9), Tier("cloud", 1e12)
    slow = choose_cuts(NETWORK, [device, cloud], [Link(10, 1.0)], input_bytes=10_000)
    assert (slow.cuts, slow.names) == ((3,), ("output",))
    assert slow.seconds == pytest.approx(0.3)
    fast = choose_cuts(NETWORK, [device, cloud], [Link(1e9)], input_bytes=10_000)
    assert (fast.cuts, fast.names) == ((0,), ("input",))
    assert fast.seconds == pytest.approx(10_000 / 1e9 + 300 * MEGA / 1e12)


def test_a_small_activation_is_where_a_moderate_link_is_crossed():
    tiers = [Tier("device", 1e9), Tier("cloud", 1e12)]
    found = choose_cuts(NETWORK, tiers, [Link(20_000, 0.001)], input_bytes=10_000)
    assert found.names == ("block2",)
    assert found.seconds == pytest.approx(0.2 + 0.001 + 1000 / 20_000 + 0.0001)


def test_images_that_exit_early_are_not_sent():
    tiers = [Tier("device", 1e9), Tier("cloud", 1e12)]
    found = choose_cuts(NETWORK, tiers, [Link(20_000)], input_bytes=10_000, continuing=[1.0, 0.1])
    assert found.seconds == pytest.approx(0.2 + 0.1 * (1000 / 20_000 + 0.0001))


def test_one_tier_runs_everything():
    found = choose_cuts(NETWORK, [Tier("device", 1e9)], [], input_bytes=0)
    assert (found.cuts, found.names) == ((), ())
    assert found.seconds == pytest.approx(0.3)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, None, "1e9"])
def test_bandwidths_and_speeds_must_be_positive_numbers(value):
    with pytest.raises(PlacementError, match=r"bandwidth of a link \(bytes/s\) .* above 0, got"):
        Link(value)
    with pytest.raises(PlacementError, match=r"speed of tier 'device' .* above 0, got"):
        Tier("device", value)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, False, None])
def test_latencies_and_sizes_must_not_be_negative(value):
    with pytest.raises(PlacementError, match=r"latency of a link .* of at least 0, got"):
        Link(1e6, value)
    with pytest.raises(PlacementError, match=r"input bytes must be .* of at least 0, got"):
        choose_cuts(NETWORK, [Tier("device", 1e9)], [], input_bytes=value)


@pytest.mark.parametrize(
    ("tiers", "links", "options", "message"),
    [
        (0, 0, {}, "got 0 tiers and 0 links"),
        (2, 0, {}, "got 2 tiers and 0 links"),
        (2, 2, {}, "got 2 tiers and 2 links"),
        (2, 1, {"continuing": [1.0]}, "each of 2 boundaries, got 1"),
        (2, 1, {"continuing": [0.5, 0.6]}, "must not rise"),
        (2, 1, {"continuing": [1.2, 0.6]}, r"after 'block1' .* in \[0, 1\], got 1\.2"),
        (2, 1, {"continuing": [1.0, math.nan]}, "after 'block2' .* got nan"),
    ],
)
def test_what_does_not_fit_is_an_error(tiers, links, options, message):
    with pytest.raises(PlacementError, match=message):
        choose_cuts(
            NETWORK,
            [Tier(f"t{i}", 1e9) for i in range(tiers)],
            [Link(1e6) for _ in range(links)],
            input_bytes=10,
            **options,
        )


def test_a_profile_without_live_bytes_is_rejected():
    profile = profile_of([1, 2, 3], [10, 0])
    tiers = [Tier("device", 1e9), Tier("cloud", 1e9)]
    with pytest.raises(PlacementError, match="live bytes at 'block2' of network are not known"):
        choose_cuts(profile, tiers, [Link(1e6)], input_bytes=10)
    assert choose_cuts(profile, tiers[:1], [], input_bytes=10).seconds == pytest.approx(3e-9)
