"""Measurement of the times of stages and branches on a device."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leenet_fx.cost.cost_table import reads_of
from leenet_fx.cost.latency import Latency
from leenet_fx.cost.page_faults import page_faults, warn_if_memory_is_returned
from leenet_fx.environment import device_name
from leenet_fx.errors import InputError, ModeError
from leenet_fx.policies import GateThreshold, Policy
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.conditional import run_backbone, run_stage
from leenet_fx.runtime.network import NetworkWithExits, check_network

BATCH_SIZES = (1, 2, 4, 8, 16, 32)

MIN_ROUNDS, MAX_ROUNDS = 5, 200
"""Between them, as many rounds are measured as `seconds` allow."""

MIN_SECONDS = 0.01
"""Least duration of each part of a round."""


class MeasuredNetwork(NetworkWithExits, Protocol):
    """A network with exits that stores its latency."""

    latency: Latency | None


def profile(
    ee: MeasuredNetwork,
    device: torch.device | str | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    *,
    reference: int | None = None,
    seconds: float = 2.0,
) -> Latency:
    """Measure each stage and branch, and store the latency in the network.

    The network runs as a whole, part after part, with the clock of torch.utils.benchmark, which
    waits for a GPU, between parts: a part that is repeated by itself would find its weights in the
    cache. Medians are stored, and the backbone's quartiles. `ee.costs.latency` has them, and
    `cost="seconds"` is counted by the medians from then on. They remain stored if the network is
    moved to another device or dtype or loads other weights, and are dropped by `ee.recompile()`.
    A warning is logged if times depend on memory that glibc hands back to the system.

    Args:
        ee: the network (`EarlyExitModule`), in evaluation mode; its policy determines whether gate
            or class logits decide (gate logits, while early exits are disabled).
        device: where to measure, and where the network is moved to; None leaves it where it is.
        batch_sizes: numbers of images per batch.
        reference: the batch size at which `cost="seconds"` is counted; None takes the first.
        seconds: duration per batch size; at least 5 rounds are measured.

    Returns:
        The times, from which those of any batch and exit distribution are computed.

    Raises:
        ModeError: `ee` is in training mode, or its weights are on the meta device.
        InputError: not a network with exits, or batch sizes out of range.
    """
    check_network(ee, "profile")
    if ee.training:
        raise ModeError("profile needs evaluation mode: call ee.eval() first.")
    sizes, reference = _check_sizes(batch_sizes, reference)
    network = _as_module(ee)
    if device is not None:
        network.to(device)
    if ee.device.type == "meta":
        raise ModeError("profile needs weights, and these are on the meta device.")
    dtype = next(p.dtype for p in network.parameters() if p.is_floating_point())
    measured: dict[int, dict[str, list[float]]] = {}
    with torch.inference_mode():
        for size in sizes:
            generator = torch.Generator().manual_seed(size)
            images = torch.randn(size, *ee.spec.image_shape, generator=generator)
            measured[size] = _measure(_ExitRound(ee, images.to(ee.device, dtype)), seconds)

    def medians(name: str) -> tuple[float, ...]:
        return tuple(statistics.median(measured[size][name]) for size in sizes)

    has_states = "stage and state 0" in measured[sizes[0]]

    def times(name: str, count: int) -> tuple[tuple[float, ...], ...]:
        return tuple(medians(f"{name} {i}") for i in range(count))

    latency = Latency(
        device=device_name(ee.device),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        reads=reads_of(ee.policy),
        compiled=ee.is_compiled,
        batch_sizes=sizes,
        reference=reference,
        backbone=medians("backbone"),
        stages=times("stage", ee.num_exits + 1),
        stage_and_exit=times("stage and exit", ee.num_exits),
        classification=times("classification", ee.num_exits),
        regrouping=times("regrouping", ee.num_exits),
        stage_and_state=times("stage and state", ee.num_exits if has_states else 0),
        backbone_quartiles=tuple(_quartiles(measured[size]["backbone"]) for size in sizes),
    )
    ee.latency = latency
    return latency


def stage_seconds(
    network: nn.Module,
    stages: Sequence[Callable[..., Any]],
    images: Tensor,
    seconds: float = 1.0,
) -> list[float]:
    """Measure the median seconds of each stage; the stages run one after the other.

    Args:
        network: the module whose weights the stages read, in evaluation mode.
        stages: functions `(network, *live)`, each of the values that the one before returns.
        images: (B, …) on the network's device.
        seconds: duration of the measurement.
    """
    with torch.inference_mode():
        measured = _measure(_StageRound(network, stages, images), seconds)
    return [statistics.median(measured[f"stage {index}"]) for index in range(len(stages))]


def _as_module(ee: MeasuredNetwork) -> nn.Module:
    assert isinstance(ee, nn.Module)
    return ee


def _check_sizes(batch_sizes: Sequence[int], reference: int | None) -> tuple[tuple[int, ...], int]:
    sizes = list(batch_sizes)
    first = reference if reference is not None or not sizes else sizes[0]
    for size in [*sizes, first]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(
                f"batch_sizes must be whole numbers from 1, and at least one, got {sizes} with "
                f"reference={reference}."
            )
    assert first is not None
    return tuple(sorted(set(sizes))), first


class _StageRound:
    """One round of measurement: each stage in turn."""

    def __init__(
        self, network: nn.Module, stages: Sequence[Callable[..., Any]], images: Tensor
    ) -> None:
        # Imported here, because the import searches for compilers and logs the result.
        from torch.utils.benchmark import timer

        self.network = network
        self.stages = stages
        self.images = images
        self.now: Callable[[], float] = timer
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, repeats: int) -> None:
        """Run and time every part `repeats` times."""
        for _ in range(repeats):
            self.run_stages()

    def run_stages(self) -> None:
        """Run and time all stages once."""
        live: Any = (self.images,)
        for index, stage in enumerate(self.stages):
            live = self.time(f"stage {index}", stage, self.network, *live)

    def time(self, name: str, call: Callable[..., Any], *args: Any) -> Any:
        """Call a function, and record its seconds under a name."""
        start = self.now()
        result = call(*args)
        self.times[name].append(self.now() - start)
        return result


class _ExitRound(_StageRound):
    """One round: the backbone, each stage, each stage with its exit, and regrouping there."""

    def __init__(self, ee: MeasuredNetwork, images: Tensor) -> None:
        super().__init__(_as_module(ee), ee.stage_plan.runs, images)
        self.plan = ee.stage_plan
        self.num_exits = ee.num_exits
        self.controller = ee.controller(_Undecided(ee.policy))
        # Exits before the last only pass their states on.
        self.passing = None
        if self.controller.carries_state:
            self.passing = ee.controller(_Undecided(ee.policy, last=self.num_exits - 1))

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            self.time("backbone", run_backbone, self.network, self.plan, self.images)
        super().__call__(repeats)
        for _ in range(repeats):
            active = ActiveBatch((self.images,), len(self.images))
            for index in range(self.num_exits):
                self.time(f"stage and exit {index}", run_stage, self.controller, index, active)
            if self.passing is not None:
                active = ActiveBatch((self.images,), len(self.images))
                for index in range(self.num_exits):
                    self.time(f"stage and state {index}", run_stage, self.passing, index, active)
        active = ActiveBatch((self.images,), len(self.images))
        for index in range(self.num_exits):
            run_stage(self.controller, index, active)
            classify = self.controller.classify
            for _ in range(repeats):
                self.time(f"classification {index}", classify, index, active, None)
                self.time(f"regrouping {index}", self._regroup, index, active)

    def _regroup(self, index: int, active: ActiveBatch) -> ActiveBatch:
        """Copy all samples, as if another one had exited."""
        exits = torch.zeros(active.count, dtype=torch.uint8, device=self.images.device)
        indices = exits.argsort(stable=True)
        assert active.classifier_inputs is not None
        active.classifier_inputs.index_select(0, indices)
        copied = replace(active)
        copied.select(indices, self.plan.cuts[index])
        return copied


class _Undecided(Policy):
    """Evaluates every exit, or the last, as another policy does, and lets no sample exit."""

    name = "undecided"

    def __init__(self, policy: Policy, last: int | None = None) -> None:
        if policy.reads == "nothing":
            policy = GateThreshold()
        self.policy = policy
        self.reads = policy.reads  # type: ignore[misc]
        self.alpha = policy.alpha
        self.last = last

    def disables(self, index: int) -> bool:
        return self.last is not None and index < self.last

    def confidence(self, index: int, scores: Tensor) -> Tensor:
        return self.policy.confidence(index, scores)

    def should_exit(self, index: int, scores: Tensor) -> Tensor:
        # No confidence is above infinity.
        return self.confidence(index, scores) > math.inf


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def _measure(run: _StageRound, seconds: float) -> dict[str, list[float]]:
    """Return seconds by name; a fast network runs several times in a row, as in use."""
    run(1)
    start = run.now()
    run.run_stages()
    repeats = max(1, math.ceil(MIN_SECONDS / (run.now() - start)))
    run.times.clear()
    device = run.images.device
    faults = page_faults(device)
    start = run.now()
    for rounds in range(1, MAX_ROUNDS + 1):
        run(repeats)
        if rounds >= MIN_ROUNDS and run.now() - start > seconds:
            break
    found = page_faults(device)
    if faults is not None and found is not None:
        warn_if_memory_is_returned(found - faults, run.now() - start)
    return dict(run.times)
