"""Time of networks with exits, of the backbone, of earlyon, and of all exits.

    pip install -e '.[bench]'
    python benchmarks/speed.py [--part PART]… [--network NAME]… [--threads N]…

Every cell is measured in one process: in each round every system runs once (small networks several
times), so that other load on the machine affects all systems. Profiles for latency predictions are
measured in between. Ratios are of medians over rounds, with a 95 % bootstrap interval. Weights are
random, and thresholds are set so that given shares of the batch exit. Measured cells are stored in
benchmarks/results/speed/ and not repeated.

glibc returns large blocks to the system and requests them again: at batch 32 a third of a
ResNet-20's time is page faults, whose number varies at random. The program restarts itself with
values of MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ that are large enough to keep the
blocks, for all systems alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from speed_report import FOLDER, SHARES, upgrade, write
from torch import Tensor, nn

import leenet_fx
from leenet_fx.cli.options import BackboneOptions
from leenet_fx.cli.setup import build
from leenet_fx.cost.latency import Latency
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.conditional import run_stage

FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
CLASSES = 10
PARTS = ("cells", "start", "memory", "compiled", "stream", "decision")
ROUNDS = 30
MIN_SECONDS = 0.05
"""Shortest measurement; a faster call is repeated."""

NEVER = 2.0
"""Threshold of the class probability that no sample reaches."""

MIX = (0.4, 0.2, 0.15)
"""Exit rates of the first three exits in the realistic mix; the final classifier has the rest."""


@dataclass(frozen=True)
class Network:
    """A backbone and the blocks after which its exits are placed.

    Attributes:
        make: builds it for an image size.
        exits: names of blocks; earlyon's heads read the same modules.
        sizes: image size at each batch size.
        blocks: patterns of blocks, if the default rule does not find the exits.
    """

    make: Callable[[int], nn.Module]
    exits: tuple[str, ...]
    sizes: dict[int, int]
    blocks: tuple[str, ...] | None = None


def _vit(size: int) -> nn.Module:
    name = "vit_small_patch16_224"
    return timm.create_model(name, num_classes=CLASSES, img_size=size)


SMALL = {1: 128, 8: 64, 32: 64, 128: 32}
"""Batch size → image size; large batches have small images, to limit the time."""

NETWORKS: dict[str, Network] = {
    "resnet20": Network(
        lambda _: build(f"{FACTORY}:resnet20", BackboneOptions()),
        ("layer1.2", "layer2.0", "layer2.2"),
        {1: 32, 8: 32, 32: 32, 128: 32},
    ),
    "resnet20-one-exit": Network(
        lambda _: build(f"{FACTORY}:resnet20", BackboneOptions()), ("layer1.2",), {1: 32}
    ),
    "resnet18": Network(
        lambda _: torchvision.models.resnet18(num_classes=CLASSES),
        ("layer1.1", "layer2.1", "layer3.1"),
        SMALL,
    ),
    "resnet18-stem": Network(
        lambda _: torchvision.models.resnet18(num_classes=CLASSES),
        ("maxpool", "layer2.1", "layer3.1"),
        {32: 224},
        blocks=("maxpool", "layer?.*"),
    ),
    "resnet50": Network(
        lambda _: torchvision.models.resnet50(num_classes=CLASSES),
        ("layer1.2", "layer2.3", "layer3.5"),
        SMALL,
    ),
    "vit_small": Network(_vit, ("blocks.2", "blocks.5", "blocks.8"), SMALL),
    "convnext_tiny": Network(
        lambda _: torchvision.models.convnext_tiny(num_classes=CLASSES),
        ("features.1.2", "features.3.2", "features.5.8"),
        SMALL,
    ),
}


def attached(model: nn.Module, network: Network, images: Tensor) -> leenet_fx.EarlyExitModule:
    """Attach exits, in evaluation mode."""
    return leenet_fx.attach(
        model,
        list(network.exits),
        example_inputs=images[:1],
        blocks=network.blocks,
        copy=False,
    ).eval()


def policy_with_rates(
    ee: leenet_fx.EarlyExitModule, images: Tensor, shares: Sequence[float]
) -> tuple[leenet_fx.Policy, list[int]]:
    """Return thresholds of the largest class probability that give the exit rates.

    Args:
        ee: the network.
        images: (B, …).
        shares: exit rates of the first exits.

    Returns:
        The policy, and the number of samples at each exit and at the final classifier.
    """
    with torch.inference_mode():
        confidences = [logits.softmax(1).amax(1) for logits in ee.all_exits(images).logits]
    active = torch.ones(len(images), dtype=torch.bool)
    thresholds, counts = [], []
    for index in range(ee.num_exits):
        count = round((shares[index] if index < len(shares) else 0.0) * len(images))
        ranked = confidences[index][active].sort(descending=True).values
        threshold = NEVER
        if count == len(ranked):
            threshold = 0.0
        elif count:
            threshold = float((ranked[count - 1] + ranked[count]) / 2)
        thresholds.append(threshold)
        exited = active & (confidences[index] >= threshold)
        counts.append(int(exited.sum()))
        active &= ~exited
    return leenet_fx.MaxProbability(thresholds), [*counts, int(active.sum())]


def earlyon_of(model: nn.Module, network: Network, images: Tensor) -> Any:
    """Return earlyon's wrapper with heads at the same modules."""
    from earlyon.models.custom import custom_ee

    return custom_ee(
        model,
        num_classes=CLASSES,
        exit_layers=list(network.exits),
        input_shape=(1, *images.shape[1:]),
    ).eval()


def run_earlyon(wrapped: Any, batches: Sequence[Tensor]) -> None:
    """Run earlyon, where a batch exits as a whole, once its least confident sample may exit."""
    for images in batches:
        wrapped.forward_inference_batched(images)


class Clock:
    """Interleaved time measurements of several systems."""

    def __init__(
        self,
        systems: dict[str, Callable[[], Any]],
        rounds: int,
        in_between: Callable[[], Any] | None = None,
    ) -> None:
        with torch.inference_mode():
            self.repeats = {}
            for name, run in systems.items():
                run()
                self.repeats[name] = max(1, math.ceil(MIN_SECONDS / max(self._once(run, 1), 1e-6)))
            self.times: dict[str, list[float]] = {name: [] for name in systems}
            for index in range(rounds):
                if in_between is not None and index % 12 == min(5, rounds - 1):
                    in_between()
                names = list(systems) if index % 2 == 0 else list(systems)[::-1]
                for name in names:
                    self.times[name].append(self._once(systems[name], self.repeats[name]))

    @staticmethod
    def _once(run: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def median(self, name: str) -> float:
        """Return the median time, in seconds."""
        return statistics.median(self.times[name])

    def ratio(self, name: str, to: str) -> dict[str, float]:
        """Return the ratio of medians and its 95 % bootstrap interval."""
        pairs = torch.tensor([self.times[name], self.times[to]], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        count = pairs.shape[1]
        drawn = torch.randint(0, count, (2000, count), generator=generator)
        medians = pairs[:, drawn].median(2).values
        low, high = (medians[0] / medians[1]).quantile(
            torch.tensor([0.025, 0.975], dtype=torch.float64)
        )
        ratio = self.median(name) / self.median(to)
        return {"ratio": ratio, "low": float(low), "high": float(high)}


def calls_of(ee: leenet_fx.EarlyExitModule, images: Tensor, counts: Sequence[int]) -> list[Any]:
    """Return the stages that a batch with these exit counts runs, as separate calls.

    Each stage includes the decision of its exit and runs on the remaining samples. The bookkeeping
    between stages is not included.

    Args:
        ee: the network.
        images: (B, …).
        counts: number of samples at each exit and at the final classifier.
    """
    controller = ee.controller(leenet_fx.MaxProbability(NEVER))
    live: Any = (images,)
    calls = []
    for index, stage in enumerate(controller.fused_stages):
        inputs = live

        def run(inputs: Any = inputs, stage: Any = stage) -> Any:
            return stage(ee, None, None, *inputs)

        calls.append(run)
        exited = sum(counts[: index + 1])
        if exited == len(images):
            return calls
        with torch.inference_mode():
            # Which samples remain does not matter; they are copied as the runtime does.
            outputs = run()[0]
            indices = torch.arange(len(outputs[0]))[: len(images) - exited]
            live = tuple(value[indices] if exited else value for value in outputs)

    def last(inputs: Any = live) -> Any:
        return ee.stage_plan.runs[-1](ee, *inputs)

    return [*calls, last]


def cell(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure one network at one batch size: every system at every exit rate."""
    network = NETWORKS[name]
    size = network.sizes[batch]
    torch.manual_seed(0)
    model = network.make(size).eval()
    # At batch size 1, four images make every rate of SHARES possible.
    images = torch.randn(max(batch, 4), 3, size, size)
    batches = list(images.split(batch))
    mixes = {**{f"ours {share:g}": (share,) for share in SHARES}, "ours mix": MIX}
    # One network for each mix, on one backbone: setting a policy is not measured.
    networks, counts = {}, {}
    for key, shares in mixes.items():
        torch.manual_seed(0)
        networks[key] = attached(model, network, images)
        networks[key].policy, counts[key] = policy_with_rates(networks[key], images, shares)
    ee = networks["ours 0"]
    wrapped = earlyon_of(network.make(size).eval(), network, images)

    def backbone() -> None:
        for batch_images in batches:
            model(batch_images)

    def ours(ee: leenet_fx.EarlyExitModule) -> Callable[[], Any]:
        return lambda: [ee(batch_images) for batch_images in batches]

    def all_exits() -> None:
        for batch_images in batches:
            logits = ee.all_exits(batch_images).logits
            confidence = torch.stack([values.softmax(1).amax(1) for values in logits])
            first = (confidence >= 0.5).int().argmax(0)
            torch.stack(logits)[first, torch.arange(len(batch_images))]

    def branches() -> None:
        for batch_features in features:
            for branch, inputs in zip(ee.exits.branches(), batch_features, strict=True):
                branch.classify(branch.hidden(*branch.pool(*inputs)))

    def earlyon(threshold: float) -> Callable[[], None]:
        def run() -> None:
            wrapped.config.confidence_thresholds[:] = [threshold] * len(network.exits)
            run_earlyon(wrapped, batches)

        return run

    with torch.inference_mode():
        features = [list(ee.exit_features(batch_images))[:-1] for batch_images in batches]
    systems: dict[str, Callable[[], Any]] = {
        "backbone": backbone,
        "branches": branches,
        **{key: ours(other) for key, other in networks.items()},
        "all exits": all_exits,
        "earlyon none": earlyon(1.0),
        "earlyon all": earlyon(0.0),
    }
    if batch > 1:
        for key, exit_counts in counts.items():
            calls = calls_of(networks[key], images, exit_counts)
            systems[f"stages {key}"] = lambda calls=calls: [call() for call in calls]
    sizes = sorted({1, *(2**i for i in range(1, 8) if 2**i < batch), batch})
    profiles: list[Latency] = []

    def profile() -> None:
        profiles.append(leenet_fx.profile(ee, batch_sizes=sizes, seconds=0.1))

    clock = Clock(systems, rounds, profile)
    row: dict[str, Any] = {
        "network": name,
        "batch": batch,
        "image": size,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "exits": list(network.exits),
        "relative_flops": list(ee.costs.relative()),
        "backbone_ms": 1e3 * clock.median("backbone") / len(batches),
        "branches": clock.ratio("branches", "backbone")["ratio"],
        "counts": counts,
    }
    for key in systems:
        if key not in ("backbone", "branches"):
            row[key] = clock.ratio(key, "backbone")
    none = clock.median("ours 0")
    parts = clock.median("backbone") + clock.median("branches")
    row["none over backbone and branches"] = none / parts
    for key, exit_counts in counts.items():
        measured = clock.median(key)
        if batch > 1:
            row[f"{key} over stages"] = measured / clock.median(f"stages {key}")
            predicted = [latency.batch_seconds(exit_counts) for latency in profiles]
        else:
            single = [
                [int(index == i) for i in range(len(exit_counts))]
                for index in _exit_indices(exit_counts)
            ]
            predicted = [sum(latency.batch_seconds(one) for one in single) for latency in profiles]
        row[f"{key} over predicted"] = measured / statistics.median(predicted)
    return row


def _exit_indices(counts: Sequence[int]) -> list[int]:
    return [index for index, count in enumerate(counts) for _ in range(count)]


def compiled(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure compiled stages, and the backbone compiled as a whole."""
    network = NETWORKS[name]
    size = network.sizes[batch]
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = network.make(size).eval()
    images = torch.randn(max(batch, 2), 3, size, size)
    ee = attached(model, network, images)
    half, none = (policy_with_rates(ee, images, [share])[0] for share in (0.5, 0.0))
    images = images[:batch]
    fast, backbone = leenet_fx.compile(ee), torch.compile(model)

    def ours(network: leenet_fx.EarlyExitModule, policy: Any) -> Callable[[], Any]:
        def run() -> Tensor:
            ee.policy = policy
            return network(images)

        return run

    start = time.perf_counter()
    with torch.inference_mode():
        ours(fast, none)()
        ours(fast, half)()
    compile_seconds = time.perf_counter() - start
    clock = Clock(
        {
            "backbone": lambda: backbone(images),
            "backbone eager": lambda: model(images),
            "none": ours(fast, none),
            "disabled": ours(fast, leenet_fx.NeverExit()),
            "half": ours(fast, half),
            "half eager": ours(ee, half),
        },
        rounds,
    )
    row: dict[str, Any] = {
        "network": name,
        "batch": batch,
        "image": size,
        "threads": torch.get_num_threads(),
        "backbone_ms": 1e3 * clock.median("backbone"),
        "compile_seconds": compile_seconds,
    }
    for key in ("backbone eager", "none", "disabled", "half", "half eager"):
        row[key] = clock.ratio(key, "backbone")
    return row


def stream(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure eight batches of the realistic mix, with and without pooling across batches."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make(64).eval()
    images = torch.randn(8 * batch, 3, 64, 64)
    batches = list(images.split(batch))
    ee = attached(model, network, images)
    ee.policy, _ = policy_with_rates(ee, images, MIX)

    def pooled(delay: int) -> Callable[[], Any]:
        return lambda: list(leenet_fx.predict_stream(ee, batches, max_delay=delay))

    systems: dict[str, Callable[[], Any]] = {
        "backbone": lambda: [model(batch_images) for batch_images in batches],
        "predict": lambda: [ee.predict(batch_images) for batch_images in batches],
        "delay 2": pooled(2),
        "delay 8": pooled(8),
    }
    clock = Clock(systems, rounds)
    row: dict[str, Any] = {
        "network": name,
        "batch": batch,
        "image": 64,
        "threads": torch.get_num_threads(),
    }
    for key in ("predict", "delay 2", "delay 8"):
        row[key] = clock.ratio(key, "backbone")
    return row


def decision(rounds: int) -> list[dict[str, Any]]:
    """Time the operations of one decision alone, and after the layers of a network.

    After a ResNet-20 at batch size 1 the processor's caches are full of its layers.
    """
    network = NETWORKS["resnet20-one-exit"]
    torch.manual_seed(0)
    model, image = network.make(32).eval(), torch.randn(1, 3, 32, 32)
    ee = attached(model, network, image)
    branch: Any = next(ee.exits.branches())
    with torch.inference_mode():
        (feature,) = next(ee.exit_features(image))
        vector = branch.pool(feature)[0]
        logits = branch.classify(branch.hidden(vector))
        probabilities = logits.softmax(1)
        confidence = probabilities.amax(1)
        exits = confidence >= NEVER
        operations: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "pool": lambda: branch.pool(feature),
            "standardize": lambda: branch.neck.inputs(vector),
            "linear": lambda: branch.head.linear(vector),
            "softmax": lambda: logits.softmax(1),
            "largest": lambda: probabilities.amax(1),
            "compare": lambda: confidence >= NEVER,
            "read": lambda: int(exits),
        }
        times: dict[str, dict[str, list[float]]] = {
            name: {"alone": [], "after": []} for name in operations
        }
        for _ in range(rounds):
            for name, run in operations.items():
                for where in ("after", "alone"):
                    if where == "after":
                        model(image)
                    begin = time.perf_counter()
                    run()
                    times[name][where].append(time.perf_counter() - begin)
    medians = {
        name: {where: 1e6 * statistics.median(values) for where, values in of.items()}
        for name, of in times.items()
    }
    empty = medians.pop("nothing")
    return [
        {
            "operation": name,
            "alone, us": of["alone"] - empty["alone"],
            "after the network, us": of["after"] - empty["after"],
        }
        for name, of in medians.items()
    ]


def start(rounds: int) -> dict[str, Any]:
    """Measure attaching exits to a ResNet-50 and the first prediction, with both libraries."""
    torch.manual_seed(0)
    network = NETWORKS["resnet50"]
    images = torch.randn(1, 3, 224, 224)
    models = iter([network.make(224).eval() for _ in range(2)])
    ours, theirs = next(models), next(models)

    def attach() -> None:
        ee = leenet_fx.attach(ours, list(network.exits), example_inputs=images)
        ee.policy = leenet_fx.MaxProbability(NEVER)
        ee(images)

    def wrap() -> None:
        wrapped = earlyon_of(theirs, network, images)
        wrapped.config.confidence_thresholds[:] = [1.0] * len(network.exits)
        run_earlyon(wrapped, [images])
        for handle in wrapped._hook_handles:
            handle.remove()

    clock = Clock({"earlyon": wrap, "ours": attach}, rounds)
    return {
        "ours, s": clock.median("ours"),
        "earlyon, s": clock.median("earlyon"),
        **clock.ratio("ours", "earlyon"),
    }


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return the peak of allocated memory during a call, in bytes."""
    gc.collect()
    with torch.inference_mode():
        run()
        with torch.profiler.profile(profile_memory=True) as profiler:
            run()
    allocated = peak = 0
    events = [
        event
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def memory() -> list[dict[str, Any]]:
    """Measure peak memory at batch 32 relative to the backbone's, by the first exit's rate.

    All samples run the first stage, where feature maps are large, so the peak of the whole run
    hardly decreases with the rate; the peak after the first exit does.
    """
    rows = []
    for name in ("resnet18", "resnet50", "vit_small", "convnext_tiny"):
        torch.manual_seed(0)
        network = NETWORKS[name]
        model = network.make(64).eval()
        images = torch.randn(32, 3, 64, 64)
        ee = attached(model, network, images)
        backbone = peak_bytes(lambda model=model, images=images: model(images))
        row: dict[str, Any] = {"network": name, "backbone, MB": backbone / 1e6}
        for share in SHARES:
            ee.policy, _ = policy_with_rates(ee, images, [share])
            row[f"{share:g}"] = peak_bytes(lambda ee=ee, images=images: ee(images)) / backbone
            row[f"after the first exit, {share:g}"] = peak_after_first_exit(ee, images) / backbone
        rows.append(row)
    return rows


def peak_after_first_exit(ee: leenet_fx.EarlyExitModule, images: Tensor) -> int:
    """Return the peak of allocated memory after the first exit, in bytes."""
    controller = ee.controller(ee.policy)
    with torch.inference_mode():
        start = ActiveBatch((images,), len(images))
        run_stage(controller, 0, start)

    def rest() -> None:
        active = replace(start)
        for index in range(1, ee.num_exits):
            if active.count:
                run_stage(controller, index, active)
        if active.count:
            controller.stage_plan.runs[-1](ee, *active.live)

    return peak_bytes(rest)


def stored(key: str, measure: Callable[[], Any]) -> Any:
    """Return the stored results of a measurement; measure and store them if there are none."""
    path = FOLDER / f"{key}.json"
    if not path.exists():
        began = time.perf_counter()
        results = measure()
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1))
        print(f"{key}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return upgrade(json.loads(path.read_text()))


ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


def keep_memory() -> None:
    """Restart the program if the allocator would return memory to the system."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def main() -> None:
    """Measure what is not stored yet, and write JSON, Markdown and the plot of all results."""
    parser = argparse.ArgumentParser(
        description="Time of networks with exits, relative to the backbone."
    )
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    options = parser.parse_args()
    keep_memory()
    parts = options.part or PARTS
    for threads in options.threads or [1, 2]:
        torch.set_num_threads(threads)
        if "cells" in parts:
            for name in options.network or NETWORKS:
                for batch in NETWORKS[name].sizes:
                    key = f"cell-{name}-{batch}-{threads}"
                    stored(key, lambda n=name, b=batch: cell(n, b, options.rounds))
        if threads > 1:
            continue
        if "start" in parts:
            stored("start", lambda: start(7))
        if "decision" in parts:
            stored("decision", lambda: decision(10 * options.rounds))
        if "stream" in parts:
            for name in ("resnet18", "resnet50"):
                for batch in (8, 32):
                    key = f"stream-{name}-{batch}"
                    stored(key, lambda n=name, b=batch: stream(n, b, options.rounds // 3))
        if "memory" in parts:
            stored("memory", memory)
        if "compiled" in parts:
            for name in ("resnet18", "resnet50"):
                for batch in (1, 32):
                    key = f"compiled-{name}-{batch}"
                    stored(key, lambda n=name, b=batch: compiled(n, b, options.rounds))
    write(list(NETWORKS))


if __name__ == "__main__":
    main()
