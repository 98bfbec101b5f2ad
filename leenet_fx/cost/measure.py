"""Measures what each stage and branch takes on a device."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leenet_fx.cost.latency import Latency
from leenet_fx.environment import device_name
from leenet_fx.errors import InputError, ModeError
from leenet_fx.policies import GateThreshold, MaxProbability, Policy, ThresholdPolicy
from leenet_fx.runtime.conditional import ActiveBatch, run_backbone, run_stage
from leenet_fx.surgery.module import EarlyExitModule, device_of

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
FEWEST, MOST = 5, 200
"""Rounds of measuring; in between, as many as `seconds` allow."""

AT_LEAST = 0.01
"""Seconds that each part of a round goes on for."""


def profile(
    ee: EarlyExitModule,
    device: torch.device | str | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    reference: int | None = None,
    seconds: float = 2.0,
) -> Latency:
    """Measures each stage and branch, and keeps what was found in the cost table.

    The network runs as a whole, piece after piece, with a clock between them (that of
    torch.utils.benchmark, which waits for a GPU): a piece run over and over by itself would find
    its weights in the cache. Medians are kept. `ee.costs` has them as `ee.costs.latency`, and
    `cost="seconds"` counts by them from then on.

    Args:
        ee: the network, in evaluation mode; its policy says whether gates or class logits decide
            (gates, while it is shut).
        device: where to measure; None measures where the network is, another moves it there.
        batch_sizes: how many images at once.
        reference: the batch size at which `cost="seconds"` counts; None takes the first.
        seconds: to spend on each batch size; at least 5 rounds are made.

    Returns:
        The times, which predict those of any batch and mix of exits.

    Raises:
        ModeError: `ee` is in training mode, or its weights are on the meta device.
        InputError: batch sizes that are none.
    """
    if ee.training:
        raise ModeError("profile needs evaluation mode: call ee.eval() first.")
    sizes, at = _checked(batch_sizes, reference)
    if device is not None:
        ee.to(device)
    place = device_of(ee)
    if place.type == "meta":
        raise ModeError("profile needs weights, and these are on the meta device.")
    dtype = next(p.dtype for p in ee.parameters() if p.is_floating_point())
    shape = ee.spec.image_shape
    found = {}
    with torch.inference_mode():
        for size in sizes:
            generator = torch.Generator().manual_seed(size)
            images = torch.randn(size, *shape, generator=generator).to(place, dtype)
            found[size] = _rounds(_Rounds(ee, images), seconds)

    def series(name: str, count: int) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(found[size][f"{name} {i}"] for size in sizes) for i in range(count))

    measured = Latency(
        device=device_name(place),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        reads=ee.costs.reads,
        compiled=ee.is_compiled,
        batch_sizes=sizes,
        reference=at,
        backbone=tuple(found[size]["plain"] for size in sizes),
        stages=series("stage", ee.num_exits + 1),
        passing=series("pass", ee.num_exits),
        leaving=series("leave", ee.num_exits),
        moving=series("move", ee.num_exits),
    )
    ee.latency = measured
    return measured


def stage_seconds(ee: EarlyExitModule, images: Tensor, seconds: float = 1.0) -> list[float]:
    """Medians of the time of each of the N+1 stages, one after the other, on these images.

    Args:
        ee: the network, in evaluation mode.
        images: (B, …) on its device.
        seconds: to spend.
    """
    with torch.inference_mode():
        found = _rounds(_Stages(ee, images), seconds)
    return [found[f"stage {index}"] for index in range(ee.num_exits + 1)]


def _checked(batch_sizes: Sequence[int], reference: int | None) -> tuple[tuple[int, ...], int]:
    sizes = list(batch_sizes)
    at = reference if reference is not None or not sizes else sizes[0]
    for size in [*sizes, at]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"batch_sizes must be whole numbers from 1, and at least one, got {sizes} with "
                f"reference={reference}."
            )
    assert at is not None
    return tuple(sorted(set(sizes))), at


class _Stages:
    """One round: each stage in turn."""

    def __init__(self, ee: EarlyExitModule, images: Tensor) -> None:
        # Imported when needed: it looks for compilers and says so.
        from torch.utils.benchmark import timer

        self.ee = ee
        self.images = images
        self.now: Callable[[], float] = timer
        self.clock: dict[str, list[float]] = defaultdict(list)

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            self.stages()

    def stages(self) -> None:
        live: Any = (self.images,)
        for index, run in enumerate(self.ee.stage_plan.runs):
            live = self.time(f"stage {index}", run, self.ee, *live)

    def time(self, name: str, call: Callable[..., Any], *given: Any) -> Any:
        start = self.now()
        result = call(*given)
        self.clock[name].append(self.now() - start)
        return result


class _Rounds(_Stages):
    """One round: the plain network, each stage, each stage with its exit, and who leaves there."""

    def __init__(self, ee: EarlyExitModule, images: Tensor) -> None:
        super().__init__(ee, images)
        self.controller = ee.controller(_never(ee))

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            self.time("plain", run_backbone, self.ee, self.ee.stage_plan, self.images)
        super().__call__(repeats)
        for _ in range(repeats):
            active = ActiveBatch((self.images,), len(self.images))
            for index in range(self.ee.num_exits):
                self.time(f"pass {index}", run_stage, self.controller, index, active)
        active = ActiveBatch((self.images,), len(self.images))
        for index in range(self.ee.num_exits):
            run_stage(self.controller, index, active)
            for _ in range(repeats):
                self.time(f"leave {index}", self.controller.classify, index, active, None)
                self.time(f"move {index}", self._move, index, active)

    def _move(self, index: int, active: ActiveBatch) -> ActiveBatch:
        """Nobody leaves, but all are copied as if somebody had."""
        nobody = torch.zeros(active.count, dtype=torch.uint8, device=self.images.device)
        rows = nobody.argsort(stable=True)
        assert active.kept is not None
        active.kept.index_select(0, rows)
        copied = replace(active)
        copied.keep(rows, self.ee.stage_plan.cuts[index])
        return copied


def _never(ee: EarlyExitModule) -> Policy:
    """A policy that asks what the network's asks, and lets nobody leave."""
    if isinstance(ee.policy, ThresholdPolicy):
        return ee.policy.with_confidence(math.inf)
    return GateThreshold(math.inf) if ee.costs.reads == "gate" else MaxProbability(math.inf)


def _rounds(run: _Stages, seconds: float) -> dict[str, float]:
    """Medians; a quick network runs several times in a row, as it would in use."""
    run(1)
    start = run.now()
    run.stages()
    repeats = max(1, math.ceil(AT_LEAST / (run.now() - start)))
    run.clock.clear()
    start = run.now()
    for done in range(1, MOST + 1):
        run(repeats)
        if done >= FEWEST and run.now() - start > seconds:
            break
    return {name: statistics.median(times) for name, times in run.clock.items()}
