"""What exits save and cost in time: beside the plain model, earlyon, and a run of all exits.

    pip install -e '.[bench]'
    python benchmarks/speed.py [--part PART]… [--network NAME]… [--threads N]…

Every cell is measured in one process: in each round every system runs once (small networks several
times), so that what slows the machine slows all of them. Profiles for predictions are taken in
between. Ratios are of medians over rounds, with a bootstrap interval of 95 %. Weights are drawn at
random, and thresholds are set so that given shares of the batch leave. Cells that were measured are
kept in benchmarks/results/speed/ and not repeated.

glibc gives large blocks back to the system and asks for them again: at batch 32 a third of a
ResNet-20's time is page faults, more or fewer by accident. The program starts itself anew with
MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ so high that it keeps them, for all systems alike.
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
from torch import Tensor, nn

import leenet_fx
from leenet_fx.cli.setup import build
from leenet_fx.cost.latency import Latency
from leenet_fx.environment import environment
from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE, pyplot, save
from leenet_fx.report.results import Criterion, Result
from leenet_fx.runtime.conditional import ActiveBatch, run_stage

COMMAND = "python benchmarks/speed.py"
RESULTS = Path(__file__).parent / "results"
FOLDER = RESULTS / "speed"
RESULT = RESULTS / "speed.json"
FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
CLASSES = 10
PARTS = ("cells", "start", "memory", "compiled", "stream", "decision")
ROUNDS = 30
LEAST = 0.05
"""Seconds that one measurement takes at least; a quicker call is repeated."""

NEVER = 2.0
"""A class probability that no sample reaches."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MIX = (0.4, 0.2, 0.15)
"""Shares that leave at the first three exits in the realistic mix; the rest goes to the end."""


@dataclass(frozen=True)
class Network:
    """A backbone and the blocks behind which its exits stand.

    Attributes:
        make: builds it for images of a side.
        exits: names of blocks; earlyon's heads stand at the same modules.
        sizes: the image's side at each batch size.
        blocks: patterns of blocks, where the rule would not find the exits.
    """

    make: Callable[[int], nn.Module]
    exits: tuple[str, ...]
    sizes: dict[int, int]
    blocks: tuple[str, ...] | None = None


def _vit(size: int) -> nn.Module:
    name = "vit_small_patch16_224"
    return timm.create_model(name, num_classes=CLASSES, img_size=size)


SMALL = {1: 128, 8: 64, 32: 64, 128: 32}
"""Images of 128 pixels one by one, of 64 and 32 in batches: 128 large ones take minutes."""

NETWORKS: dict[str, Network] = {
    "resnet20": Network(
        lambda _: build(f"{FACTORY}:resnet20"),
        ("layer1.2", "layer2.0", "layer2.2"),
        {1: 32, 8: 32, 32: 32, 128: 32},
    ),
    "resnet20-one-exit": Network(lambda _: build(f"{FACTORY}:resnet20"), ("layer1.2",), {1: 32}),
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
    """Exits with a threshold on the largest class probability, as earlyon's."""
    return leenet_fx.attach(
        model,
        list(network.exits),
        example_inputs=images[:1],
        blocks=network.blocks,
        copy=False,
    ).eval()


def letting_go(
    ee: leenet_fx.EarlyExitModule, images: Tensor, shares: Sequence[float]
) -> tuple[leenet_fx.Policy, list[int]]:
    """Thresholds by which these shares of the images leave at the first exits.

    Returns:
        The policy, and how many leave at each exit and at the end.
    """
    with torch.inference_mode():
        sure = [logits.softmax(1).amax(1) for logits in ee.all_exits(images).logits]
    active = torch.ones(len(images), dtype=torch.bool)
    thresholds, counts = [], []
    for index in range(ee.num_exits):
        leave = round((shares[index] if index < len(shares) else 0.0) * len(images))
        ranked = sure[index][active].sort(descending=True).values
        at = NEVER
        if leave == len(ranked):
            at = 0.0
        elif leave:
            at = float((ranked[leave - 1] + ranked[leave]) / 2)
        thresholds.append(at)
        gone = active & (sure[index] >= at)
        counts.append(int(gone.sum()))
        active &= ~gone
    return leenet_fx.MaxProbability(thresholds), [*counts, int(active.sum())]


def earlyon_of(model: nn.Module, network: Network, images: Tensor) -> Any:
    """earlyon's wrapper with heads at the same modules."""
    from earlyon.models.custom import custom_ee

    return custom_ee(
        model,
        num_classes=CLASSES,
        exit_layers=list(network.exits),
        input_shape=(1, *images.shape[1:]),
    ).eval()


def run_earlyon(wrapped: Any, batches: Sequence[Tensor]) -> None:
    """A batch leaves as a whole, where its hardest sample may."""
    for images in batches:
        wrapped.forward_inference_batched(images)


class Clock:
    """Medians of systems that run in turn."""

    def __init__(
        self,
        systems: dict[str, Callable[[], Any]],
        rounds: int,
        now_and_then: Callable[[], Any] | None = None,
    ) -> None:
        with torch.inference_mode():
            self.repeats = {}
            for name, run in systems.items():
                run()
                self.repeats[name] = max(1, math.ceil(LEAST / max(self._once(run, 1), 1e-6)))
            self.times: dict[str, list[float]] = {name: [] for name in systems}
            for turn in range(rounds):
                if now_and_then is not None and turn % 12 == min(5, rounds - 1):
                    now_and_then()
                names = list(systems) if turn % 2 == 0 else list(systems)[::-1]
                for name in names:
                    self.times[name].append(self._once(systems[name], self.repeats[name]))

    @staticmethod
    def _once(run: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.times[name])

    def ratio(self, name: str, to: str) -> dict[str, float]:
        """Ratio of medians and its 95 % bootstrap interval."""
        pairs = torch.tensor([self.times[name], self.times[to]], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        count = pairs.shape[1]
        drawn = torch.randint(0, count, (2000, count), generator=generator)
        medians = pairs[:, drawn].median(2).values
        low, high = (medians[0] / medians[1]).quantile(
            torch.tensor([0.025, 0.975], dtype=torch.float64)
        )
        found = self.median(name) / self.median(to)
        return {"ratio": found, "low": float(low), "high": float(high)}


def pieces_of(ee: leenet_fx.EarlyExitModule, images: Tensor, counts: Sequence[int]) -> list[Any]:
    """The work that a batch with these counts really does, as separate calls.

    Stages with the deciding part of their exits, on as many samples as arrive; what is left out is
    all that runs between them.
    """
    controller = ee.controller(leenet_fx.MaxProbability(NEVER))
    live: Any = (images,)
    calls = []
    for index, segment in enumerate(controller.fused_stages):
        given = live

        def run(given: Any = given, segment: Any = segment) -> Any:
            return segment(ee, None, None, *given)

        calls.append(run)
        left = sum(counts[: index + 1])
        if left == len(images):
            return calls
        with torch.inference_mode():
            # Any samples do, and they are copied as survivors are.
            arrived = run()[0]
            rows = torch.arange(len(arrived[0]))[: len(images) - left]
            live = tuple(value[rows] if left else value for value in arrived)

    def last(given: Any = live) -> Any:
        return ee.stage_plan.runs[-1](ee, *given)

    return [*calls, last]


def cell(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """One network at one batch size: every system, every share."""
    network = NETWORKS[name]
    size = network.sizes[batch]
    torch.manual_seed(0)
    model = network.make(size).eval()
    # One by one, four images make every share of SHARES possible.
    images = torch.randn(max(batch, 4), 3, size, size)
    batches = list(images.split(batch))
    mixes = {**{f"ours {share:g}": (share,) for share in SHARES}, "ours mix": MIX}
    # One network for each mix, on one backbone: nobody sets a policy between two batches.
    networks, counts = {}, {}
    for key, shares in mixes.items():
        torch.manual_seed(0)
        networks[key] = attached(model, network, images)
        networks[key].policy, counts[key] = letting_go(networks[key], images, shares)
    ee = networks["ours 0"]
    wrapped = earlyon_of(network.make(size).eval(), network, images)

    def plain() -> None:
        for given in batches:
            model(given)

    def ours(ee: leenet_fx.EarlyExitModule) -> Callable[[], Any]:
        return lambda: [ee(given) for given in batches]

    def all_exits() -> None:
        for given in batches:
            found = ee.all_exits(given).logits
            sure = torch.stack([logits.softmax(1).amax(1) for logits in found])
            first = (sure >= 0.5).int().argmax(0)
            torch.stack(found)[first, torch.arange(len(given))]

    def branches() -> None:
        for given in features:
            for branch, read in zip(ee.exits.branches(), given, strict=True):
                branch.classify(branch.hidden(*branch.pool(*read)))

    def earlyon(threshold: float) -> Callable[[], None]:
        def run() -> None:
            wrapped.config.confidence_thresholds[:] = [threshold] * len(network.exits)
            run_earlyon(wrapped, batches)

        return run

    with torch.inference_mode():
        features = [list(ee.exit_features(given))[:-1] for given in batches]
    systems: dict[str, Callable[[], Any]] = {
        "plain": plain,
        "branches": branches,
        **{key: ours(made) for key, made in networks.items()},
        "all exits": all_exits,
        "earlyon none": earlyon(1.0),
        "earlyon all": earlyon(0.0),
    }
    if batch > 1:
        for key, leaving in counts.items():
            calls = pieces_of(networks[key], images, leaving)
            systems[f"pieces {key}"] = lambda calls=calls: [call() for call in calls]
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
        "plain_ms": 1e3 * clock.median("plain") / len(batches),
        "branches": clock.ratio("branches", "plain")["ratio"],
        "counts": counts,
    }
    for key in systems:
        if key not in ("plain", "branches"):
            row[key] = clock.ratio(key, "plain")
    none = clock.median("ours 0")
    row["none over plain and branches"] = none / (clock.median("plain") + clock.median("branches"))
    for key, leaving in counts.items():
        measured = clock.median(key)
        if batch > 1:
            row[f"{key} over pieces"] = measured / clock.median(f"pieces {key}")
            predicted = [known.of_batch(leaving) for known in profiles]
        else:
            each = [[int(e == i) for i in range(len(leaving))] for e in _outlets(leaving)]
            predicted = [sum(known.of_batch(one) for one in each) for known in profiles]
        row[f"{key} over predicted"] = measured / statistics.median(predicted)
    return row


def _outlets(counts: Sequence[int]) -> list[int]:
    return [outlet for outlet, count in enumerate(counts) for _ in range(count)]


def compiled(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Stages compiled, beside the plain model compiled as a whole."""
    network = NETWORKS[name]
    size = network.sizes[batch]
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = network.make(size).eval()
    images = torch.randn(max(batch, 2), 3, size, size)
    ee = attached(model, network, images)
    half, none = (letting_go(ee, images, [share])[0] for share in (0.5, 0.0))
    images = images[:batch]
    fast, plain = leenet_fx.compile(ee), torch.compile(model)

    def ours(network: leenet_fx.EarlyExitModule, policy: Any) -> Callable[[], Any]:
        def run() -> Tensor:
            ee.policy = policy
            return network(images)

        return run

    start = time.perf_counter()
    with torch.inference_mode():
        ours(fast, none)()
        ours(fast, half)()
    took = time.perf_counter() - start
    clock = Clock(
        {
            "plain": lambda: plain(images),
            "plain eager": lambda: model(images),
            "none": ours(fast, none),
            "shut": ours(fast, leenet_fx.NeverExit()),
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
        "plain_ms": 1e3 * clock.median("plain"),
        "compile_seconds": took,
    }
    for key in ("plain eager", "none", "shut", "half", "half eager"):
        row[key] = clock.ratio(key, "plain")
    return row


def stream(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Eight batches of the realistic mix: survivors pooled, and each batch by itself."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make(64).eval()
    images = torch.randn(8 * batch, 3, 64, 64)
    batches = list(images.split(batch))
    ee = attached(model, network, images)
    ee.policy, _ = letting_go(ee, images, MIX)

    def pooled(delay: int) -> Callable[[], Any]:
        return lambda: list(leenet_fx.predict_stream(ee, batches, max_delay=delay))

    systems: dict[str, Callable[[], Any]] = {
        "plain": lambda: [model(given) for given in batches],
        "predict": lambda: [ee.predict(given) for given in batches],
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
        row[key] = clock.ratio(key, "plain")
    return row


def decision(rounds: int) -> list[dict[str, Any]]:
    """What the operations of one decision take by themselves, and where they stand in a network.

    Behind a ResNet-20 at batch 1 they find the processor's caches full of its layers.
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
        chances = logits.softmax(1)
        sure = chances.amax(1)
        leave = sure >= NEVER
        operations: dict[str, Callable[[], Any]] = {
            "nothing": lambda: None,
            "pool": lambda: branch.pool(feature),
            "scale": lambda: branch.body.inputs(vector),
            "linear": lambda: branch.head.linear(vector),
            "softmax": lambda: logits.softmax(1),
            "largest": lambda: chances.amax(1),
            "compare": lambda: sure >= NEVER,
            "ask": lambda: int(leave),
        }
        times: dict[str, dict[str, list[float]]] = {
            name: {"alone": [], "behind": []} for name in operations
        }
        for _ in range(rounds):
            for name, run in operations.items():
                for where in ("behind", "alone"):
                    if where == "behind":
                        model(image)
                    begin = time.perf_counter()
                    run()
                    times[name][where].append(time.perf_counter() - begin)
    found = {
        name: {where: 1e6 * statistics.median(taken) for where, taken in of.items()}
        for name, of in times.items()
    }
    empty = found.pop("nothing")
    return [
        {
            "operation": name,
            "alone, us": of["alone"] - empty["alone"],
            "behind the network, us": of["behind"] - empty["behind"],
        }
        for name, of in found.items()
    ]


def start(rounds: int) -> dict[str, Any]:
    """From a ResNet-50 to the first answer: attach and predict, wrap and predict."""
    torch.manual_seed(0)
    network = NETWORKS["resnet50"]
    images = torch.randn(1, 3, 224, 224)
    models = iter([network.make(224).eval() for _ in range(2)])
    ours, theirs = next(models), next(models)

    def attach() -> None:
        made = leenet_fx.attach(ours, list(network.exits), example_inputs=images)
        made.policy = leenet_fx.MaxProbability(NEVER)
        made(images)

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
    """The most memory that torch had allocated at once, beyond what was there before."""
    gc.collect()
    with torch.inference_mode():
        run()
        with torch.profiler.profile(profile_memory=True) as profiler:
            run()
    held = most = 0
    events = [
        event
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def memory() -> list[dict[str, Any]]:
    """Peak memory at batch 32 over the plain model's, by how many leave at the first exit.

    All samples run the first stage, where images are large, so the whole run's peak hardly falls;
    that of what runs behind the first exit does.
    """
    rows = []
    for name in ("resnet18", "resnet50", "vit_small", "convnext_tiny"):
        torch.manual_seed(0)
        network = NETWORKS[name]
        model = network.make(64).eval()
        images = torch.randn(32, 3, 64, 64)
        ee = attached(model, network, images)
        plain = peak_bytes(lambda model=model, images=images: model(images))
        row: dict[str, Any] = {"network": name, "plain, MB": plain / 1e6}
        for share in SHARES:
            ee.policy, _ = letting_go(ee, images, [share])
            row[f"{share:g}"] = peak_bytes(lambda ee=ee, images=images: ee(images)) / plain
            row[f"behind the first exit, {share:g}"] = peak_behind_first_exit(ee, images) / plain
        rows.append(row)
    return rows


def peak_behind_first_exit(ee: leenet_fx.EarlyExitModule, images: Tensor) -> int:
    """The most memory allocated once the first exit has let go who leaves."""
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


def kept(key: str, measure: Callable[[], Any]) -> Any:
    """What a file holds, or what is measured and written there."""
    path = FOLDER / f"{key}.json"
    if not path.exists():
        began = time.perf_counter()
        found = measure()
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
        print(f"{key}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


def figures(
    cells: list[dict[str, Any]],
    compiled_rows: list[dict[str, Any]],
    started: dict[str, Any] | None,
    memory_rows: list[dict[str, Any]],
) -> list[Criterion]:
    """What was asked for, beside what was found, on one thread."""
    made = []
    one = {(row["network"], row["batch"]): row for row in cells if row["threads"] == 1}
    for name in ("resnet18", "resnet50"):
        for batch in (1, 32):
            if (name, batch) in one:
                ratio = one[name, batch]["none over plain and branches"]
                words = f"{name}, batch {batch}, nobody leaves, over plain + branches"
                made.append(Criterion(words, ratio, "", "≤ 1.02", ratio <= 1.02))
    for row in compiled_rows:
        ratio = row["none"]["ratio"]
        words = f"{row['network']}, batch {row['batch']}, compiled, nobody leaves, over compiled"
        made.append(Criterion(words, ratio, "", "≤ 1.03", ratio <= 1.03))
    stage_plan = [
        (row[key], row["network"], row["batch"], key)
        for row in one.values()
        for key in row
        if key.endswith("over pieces")
    ]
    if stage_plan:
        ratios = [ratio for ratio, *_ in stage_plan]
        within = sum(ratio <= 1.05 for ratio in ratios) / len(ratios)
        words = f"any mix over its stage times, median of {len(ratios)}"
        middle = statistics.median(ratios)
        made.append(Criterion(words, middle, "", "≤ 1.05", middle <= 1.05))
        made.append(
            Criterion("any mix over its stage times, share ≤ 1.05", within, "", "1", within == 1)
        )
        worst, *where = max(stage_plan)
        words = f"worst mix over its stage times ({', '.join(map(str, where))})"
        made.append(Criterion(words, worst, "", "≤ 1.05", worst <= 1.05))
    predicted = [row[key] for row in one.values() for key in row if key.endswith("over predicted")]
    if predicted:
        within = sum(abs(ratio - 1) <= 0.1 for ratio in predicted) / len(predicted)
        words = f"latency predicted within 10 %, share of {len(predicted)} mixes"
        made.append(Criterion(words, within, "", "1", within == 1))
        off = statistics.median(abs(ratio - 1) for ratio in predicted)
        made.append(Criterion("latency predicted, median error", off, "", "≤ 0.1", off <= 0.1))
    stem = one.get(("resnet18-stem", 32))
    if stem:
        ratio = stem["ours 0.5"]["ratio"]
        words = "resnet18, batch 32, half leave behind the stem, over plain"
        made.append(Criterion(words, ratio, "", "< 0.62", ratio < 0.62))
    for name, exits in (("resnet20-one-exit", "one exit"), ("resnet20", "three exits")):
        if (name, 1) in one:
            ratio = one[name, 1]["ours 0"]["ratio"]
            words = f"resnet20 with {exits}, batch 1, nobody leaves, over plain"
            made.append(Criterion(words, ratio, "", "≤ 1.05", ratio <= 1.05))
    if started:
        words = "resnet50, attach and first answer, over earlyon's"
        made.append(Criterion(words, started["ratio"], "", "< 1", started["ratio"] < 1))
    for row in memory_rows:
        words = f"{row['network']}, batch 32, peak memory, nobody leaves, over plain"
        made.append(Criterion(words, row["0"], "", "≤ 1.05", row["0"] <= 1.05))
        falls = [row[f"behind the first exit, {share:g}"] for share in SHARES]
        words = f"{row['network']}, peak behind the first exit, three quarters left, over none left"
        ratio = falls[3] / falls[0]
        made.append(Criterion(words, ratio, "", "falls", falls == sorted(falls, reverse=True)))
    return made


def plot(cells: Sequence[dict[str, Any]], path: Path) -> None:
    """Time over plain by share that leaves at the first exit, a panel for each network."""
    names = [name for name in NETWORKS if any(row["network"] == name for row in cells)]
    figure, panels = pyplot().subplots(
        2,
        math.ceil(len(names) / 2),
        figsize=(11, 6.5),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    colours = {1: ORANGE, 8: GREEN, 32: BLUE, 128: GREY}
    for axes, name in zip(panels.flat, names, strict=False):
        for row in cells:
            if row["network"] != name or row["threads"] != 1:
                continue
            colour, found = colours[row["batch"]], [row[f"ours {share:g}"] for share in SHARES]
            axes.plot(SHARES, [f["ratio"] for f in found], "o-", ms=4, color=colour)
            axes.fill_between(
                SHARES,
                [f["low"] for f in found],
                [f["high"] for f in found],
                color=colour,
                alpha=0.2,
            )
            first = row["relative_flops"][0]
            work = [share * first + (1 - share) * row["relative_flops"][-1] for share in SHARES]
            if row["batch"] == max(r["batch"] for r in cells if r["network"] == name):
                axes.plot(SHARES, work, ":", color="black", lw=1)
                label = f"first exit at {first:.2f} of the FLOPs"
                axes.text(0.02, 0.04, label, transform=axes.transAxes, fontsize=8)
            theirs = [row["earlyon none"]["ratio"]] * 4 + [row["earlyon all"]["ratio"]]
            if row["batch"] == 32:
                axes.plot(SHARES, theirs, "x--", color="#666666", ms=4, lw=0.8)
        axes.set(title=name, xlabel="share that leaves at the first exit", ylim=(0, 1.35))
        axes.grid(alpha=0.3)
    for row in panels[:, :1]:
        row[0].set_ylabel("time over the plain model's")
    for axes in list(panels.flat)[len(names) :]:
        axes.axis("off")
    handles = [
        *(
            figure.axes[0].plot([], [], "o-", color=c, label=f"batch {b}")[0]
            for b, c in colours.items()
        ),
        figure.axes[0].plot([], [], ":", color="black", label="FLOPs")[0],
        figure.axes[0].plot([], [], "x--", color="#666666", label="earlyon, batch 32")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def table(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell, as the Markdown shows it."""

    def shown(row: dict[str, Any], key: str) -> str:
        found = row[key]
        return f"{found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"

    return [
        {
            "network": row["network"],
            "batch": row["batch"],
            "image": row["image"],
            "threads": row["threads"],
            "plain, ms": f"{row['plain_ms']:.1f}",
            **{f"{100 * share:g} %": shown(row, f"ours {share:g}") for share in SHARES},
            "mix": shown(row, "ours mix"),
            "all exits": shown(row, "all exits"),
            "earlyon, none": shown(row, "earlyon none"),
            "earlyon, all": shown(row, "earlyon all"),
            "none / (plain + branches)": f"{row['none over plain and branches']:.3f}",
        }
        for row in cells
    ]


ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


def keep_memory() -> None:
    """Starts the program anew where the allocator would give memory back."""
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def main() -> None:
    """Measures what is not kept yet, and writes JSON, Markdown and the plot of all there is."""
    parser = argparse.ArgumentParser(description="Time beside the plain model.")
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    options = parser.parse_args()
    keep_memory()
    asked = options.part or PARTS
    for threads in options.threads or [1, 2]:
        torch.set_num_threads(threads)
        if "cells" in asked:
            for name in options.network or NETWORKS:
                for batch in NETWORKS[name].sizes:
                    key = f"cell-{name}-{batch}-{threads}"
                    kept(key, lambda n=name, b=batch: cell(n, b, options.rounds))
        if threads > 1:
            continue
        if "start" in asked:
            kept("start", lambda: start(7))
        if "decision" in asked:
            kept("decision", lambda: decision(10 * options.rounds))
        if "stream" in asked:
            for name in ("resnet18", "resnet50"):
                for batch in (8, 32):
                    key = f"stream-{name}-{batch}"
                    kept(key, lambda n=name, b=batch: stream(n, b, options.rounds // 3))
        if "memory" in asked:
            kept("memory", memory)
        if "compiled" in asked:
            for name in ("resnet18", "resnet50"):
                for batch in (1, 32):
                    key = f"compiled-{name}-{batch}"
                    kept(key, lambda n=name, b=batch: compiled(n, b, options.rounds))
    write()


def write() -> None:
    """The results of all that was measured."""

    def read(pattern: str) -> list[Any]:
        return [json.loads(path.read_text()) for path in sorted(FOLDER.glob(pattern))]

    order = list(NETWORKS)
    cells = sorted(
        read("cell-*.json"),
        key=lambda row: (row["threads"], order.index(row["network"]), row["batch"]),
    )
    compiled_rows, streams = read("compiled-*.json"), read("stream-*.json")
    started = next(iter(read("start.json")), None)
    memory_rows = next(iter(read("memory.json")), [])
    decided = next(iter(read("decision.json")), [])
    rows = [
        *({"part": "cells", **row} for row in cells),
        *({"part": "compiled", **row} for row in compiled_rows),
        *([{"part": "start", **started}] if started else []),
        *({"part": "memory", **row} for row in memory_rows),
        *({"part": "stream", **row} for row in streams),
        *({"part": "decision", **row} for row in decided),
    ]
    found = figures(cells, compiled_rows, started, memory_rows)
    for row in streams:
        words = f"{row['network']}, stream of batches of {row['batch']}, realistic mix"
        for key in ("predict", "delay 2", "delay 8"):
            what = {"predict": "one by one"}.get(key, f"pooled, {key}")
            figure = Criterion(
                f"{words}: {what}, over plain", row[key]["ratio"], "", "printed", True
            )
            found.append(figure)
    for where in ("alone", "behind the network"):
        if decided:
            words = f"one decision on one image, {where}, all operations, μs"
            took = sum(row[f"{where}, us"] for row in decided)
            found.append(Criterion(words, took, "", "printed", True))
    setting = environment() | {
        "threads": "as the rows say",
        "allocator": "glibc, keeping what is freed",
    }
    Result(COMMAND, rows, found, setting).write(RESULT, "Time", table(cells))
    plot(cells, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
