"""Cuts of a network between tiers, such as a device, an edge server and the cloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from placement.cost_profile import CostProfile
from placement.errors import PlacementError


@dataclass(frozen=True)
class Tier:
    """A machine that runs a part of the network.

    Attributes:
        name: for messages.
        flops_per_second: its speed on this network, in FLOP/s, above 0.

    Raises:
        PlacementError: a speed that is not a finite number above 0.
    """

    name: str
    flops_per_second: float

    def __post_init__(self) -> None:
        _check_number(self.flops_per_second, f"speed of tier '{self.name}' (FLOP/s)", above=True)


@dataclass(frozen=True)
class Link:
    """The connection from one tier to the next.

    Attributes:
        bytes_per_second: bandwidth in bytes (not bits) per second, above 0.
        latency: seconds until the first byte arrives, at least 0.

    Raises:
        PlacementError: a bandwidth that is not a finite number above 0, or a latency that is not
            one of at least 0.
    """

    bytes_per_second: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        _check_number(self.bytes_per_second, "bandwidth of a link (bytes/s)", above=True)
        _check_number(self.latency, "latency of a link (seconds)")


@dataclass(frozen=True)
class Partition:
    """Where a network is cut between tiers.

    Attributes:
        cuts: for each link the boundary it is crossed at: 0 is the input, i is candidate i−1, and
            one more than the number of candidates is the output. Tier t runs what lies between
            cuts t−1 and t, which may be nothing.
        names: the names of these boundaries: "input", a candidate or "output". A link at "output"
            is not used.
        seconds: expected time for one image, without the way back of the answer.
    """

    cuts: tuple[int, ...]
    names: tuple[str, ...]
    seconds: float


def choose_cuts(
    profile: CostProfile,
    tiers: Sequence[Tier],
    links: Sequence[Link],
    *,
    input_bytes: float,
    continuing: Sequence[float] | None = None,
) -> Partition:
    """Cut a network between tiers, so that the expected time of an image is the shortest.

    An image runs through the tiers in order. A tier takes FLOPs / speed; a link takes its latency
    plus the activation memory at the cut / bandwidth. All cuts are compared, by the shortest path
    in the graph of (boundary, tier); of equally fast ones, any.

    Args:
        profile: with the FLOPs and live bytes at each boundary.
        tiers: at least one, in the order in which an image passes them.
        links: one less than the tiers.
        input_bytes: bytes of one image as it is sent, for a cut before the first block.
        continuing: for each candidate the share of images that go on after it, in [0, 1] and not
            rising; None if all do. An image that exits at the boundary of a cut is not sent.

    Raises:
        PlacementError: numbers of tiers, links or shares that do not fit; live bytes that are not
            known; values out of range.
    """
    import networkx as nx

    if not tiers or len(links) != len(tiers) - 1:
        raise PlacementError(
            f"Expected at least one tier and one link between each two, got {len(tiers)} tiers "
            f"and {len(links)} links."
        )
    _check_number(input_bytes, "number of input bytes")
    unknown = [candidate.name for candidate in profile.candidates if candidate.live_bytes <= 0]
    if unknown and links:
        raise PlacementError(
            f"The live bytes at '{unknown[0]}' of {profile.model} are not known, so the time of a "
            "cut there is not: profile the network again."
        )
    shares = (1.0, *_checked_shares(profile, continuing))
    sizes = (input_bytes, *(candidate.live_bytes for candidate in profile.candidates))
    flops = (0, *(candidate.flops for candidate in profile.candidates), profile.flops)
    end = len(flops) - 1
    graph = nx.DiGraph()
    for t, tier in enumerate(tiers):
        for boundary, (before, after) in enumerate(pairwise(flops)):
            seconds = shares[boundary] * (after - before) / tier.flops_per_second
            graph.add_edge((boundary, t), (boundary + 1, t), seconds=seconds)
    for t, link in enumerate(links):
        for boundary in range(end):
            seconds = link.latency + sizes[boundary] / link.bytes_per_second
            graph.add_edge((boundary, t), (boundary, t + 1), seconds=shares[boundary] * seconds)
        graph.add_edge((end, t), (end, t + 1), seconds=0.0)
    seconds, path = nx.single_source_dijkstra(
        graph, (0, 0), (end, len(tiers) - 1), weight="seconds"
    )
    cuts = tuple(here for (here, t), (_, following) in pairwise(path) if following > t)
    names = ("input", *profile.names, "output")
    return Partition(cuts, tuple(names[cut] for cut in cuts), float(seconds))


def _checked_shares(profile: CostProfile, continuing: Sequence[float] | None) -> list[float]:
    number = len(profile.candidates)
    if continuing is None:
        return [1.0] * number
    if len(continuing) != number:
        raise PlacementError(
            f"Expected the share of images that go on after each of {number} boundaries, got "
            f"{len(continuing)}."
        )
    for name, share in zip(profile.names, continuing, strict=True):
        _check_number(share, f"share of images that go on after '{name}'", most=1.0)
    if any(later > earlier for earlier, later in pairwise(continuing)):
        raise PlacementError(
            f"Images that exited do not return: the shares must not rise, got {list(continuing)}."
        )
    return list(continuing)


def _check_number(value: object, what: str, *, above: bool = False, most: float = math.inf) -> None:
    """Raise PlacementError unless a value is a finite number ≥ 0 (or above 0) and ≤ `most`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and 0 <= value <= most and (value > 0 or not above):  # type: ignore[operator, arg-type]
        return
    expected = "above 0" if above else "of at least 0" if most == math.inf else f"in [0, {most:g}]"
    raise PlacementError(f"The {what} must be a finite number {expected}, got {value!r}.")
