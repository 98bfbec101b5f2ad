"""Where a network is cut between tiers, from measured times, bandwidths and bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from leenet_fx.errors import InputError, placement_errors
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.conditional import run_any_stage
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.tiers.coding import Coding, check_coding
from leenet_fx.tiers.cut_format import CutFormat
from leenet_fx.tiers.link import BITS
from leenet_fx.tiers.messages import encode
from placement import Candidate, CostProfile, Link, Partition, Tier, choose_cuts

_NANOSECONDS = 1e9


@dataclass(frozen=True)
class StageCosts:
    """What `choose_stages` needs to know of a network, for one image at a time.

    Attributes:
        names: (N,) of the blocks before the exits.
        seconds: (N+1,) median time of each stage with its exit, on this machine.
        sent_bytes: (N+1,) bytes of the message before each stage, header included.
        continuing: (N,) share of images that go on after each exit.
    """

    names: tuple[str, ...]
    seconds: tuple[float, ...]
    sent_bytes: tuple[int, ...]
    continuing: tuple[float, ...]


@dataclass(frozen=True)
class StageCuts:
    """Stages of each tier.

    Attributes:
        stages: first and stop of each tier. A tier without stages passes images on; those behind
            the final classifier are left out.
        seconds: expected time of an image, without the way back of the answer.
    """

    stages: tuple[tuple[int, int], ...]
    seconds: float


@torch.inference_mode()
def measure_stages(
    ee: EarlyExitModule, images: Tensor, *, coding: Coding = "unchanged"
) -> StageCosts:
    """Measure each stage on images, one at a time, and the messages between them.

    Args:
        ee: the network, in evaluation mode; its policy decides which images go on.
        images: (n, …), n ≥ 1.
        coding: of live tensors.

    Raises:
        InputError: no images.
        UnknownNameError: no such coding.
    """
    check_coding(coding)
    if not len(images):
        raise InputError("Stages are measured on images, and there are none.")
    ee.check_images(images)
    controller, count = ee.controller(ee.policy), ee.num_exits
    formats = [CutFormat(ee, controller, stage) for stage in range(count + 1)]
    times: list[list[float]] = [[] for _ in range(count + 1)]
    sizes: list[list[int]] = [[] for _ in range(count + 1)]
    for image in images.to(ee.device).split(1):
        active = ActiveBatch((image,), 1, torch.arange(1, device=ee.device))
        for stage in range(count + 1):
            message = formats[stage].message(active, coding, seconds=1.0)
            sizes[stage].append(len(encode(message)))
            start = time.perf_counter()
            run_any_stage(controller, stage, active)
            times[stage].append(time.perf_counter() - start)
            if not active.count:
                break
    reached = [len(found) / len(images) for found in times]
    return StageCosts(
        ee.spec.placement.names,
        tuple(statistics.median(found) if found else 0.0 for found in times),
        tuple(round(statistics.mean(found)) if found else 0 for found in sizes),
        tuple(reached[1:]),
    )


def choose_stages(
    costs: StageCosts,
    *,
    speeds: Sequence[float],
    bandwidths: Sequence[float],
    latencies: Sequence[float] | None = None,
) -> StageCuts:
    """Choose the stages of each tier, so that the expected time of an image is the shortest.

    `placement.choose_cuts` compares all cuts; the work between two cuts is the measured time.

    Args:
        costs: of the network.
        speeds: for each tier, its speed relative to the machine where `costs` were measured.
        bandwidths: for each link, in Mbit/s.
        latencies: for each link, the seconds until a message's first byte arrives; None for 0.

    Raises:
        PlacementError: numbers that do not fit or are out of range.
    """
    *up_to, total = accumulate(round(_NANOSECONDS * seconds) for seconds in costs.seconds)
    candidates = tuple(
        # A cut that no image reaches is as cheap as one that few reach.
        Candidate(name, work, work, work, max(1, size))
        for name, work, size in zip(costs.names, up_to, costs.sent_bytes[1:], strict=True)
    )
    with placement_errors():
        if latencies is not None and len(latencies) != len(bandwidths):
            raise InputError(
                f"Expected a latency for each of {len(bandwidths)} links, got {len(latencies)}."
            )
        found: Partition = choose_cuts(
            CostProfile("network", candidates, total, total, total),
            [Tier(f"{i}", speed * _NANOSECONDS) for i, speed in enumerate(speeds)],
            [
                Link(bandwidth * BITS, latency)
                for bandwidth, latency in zip(
                    bandwidths, latencies or [0.0] * len(bandwidths), strict=True
                )
            ],
            input_bytes=costs.sent_bytes[0],
            continuing=costs.continuing,
        )
    count = len(costs.seconds)
    stages = (pair for pair in pairwise([0, *found.cuts, count]) if pair[0] < count)
    return StageCuts(tuple(stages), found.seconds)
