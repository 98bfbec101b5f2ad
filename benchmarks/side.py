"""Side branches on ResNet-20 and ResNet-56: what each option is worth, and the frontier.

    python benchmarks/side.py --data PATH --weights PATH [--rows NAME…] [--device cuda]

Rows that compare options train briefly, on a part of the train split, from cached features; the
others train on all of it with random crops and flips. Points are the subsets of exits with a
common threshold that are best on the calibration split; figures are of the test split: the least
FLOPs of these points within a drop from the backbone's accuracy. Finished rows are kept in a file
each, so an interrupted benchmark goes on with the next row, and rows may run side by side.
Committed rows are finished ones, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from cifar10 import HEAD_BATCH, NETWORKS, RESULTS, WORK, Cifar10
from in_memory import InMemory
from methods import backbone_only
from safetensors.torch import load_file, save_file
from schedules import rescheduled
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import leenet_fx
from leenet_fx.calibration.cached_outputs import CachedOutputs, confidences, outputs_of_data
from leenet_fx.calibration.exit_subsets import SubsetCosts, exits_of
from leenet_fx.cost.page_faults import keep_memory
from leenet_fx.environment import environment
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "side.json"
PARTIAL = WORK / "side"
COMMAND = "python benchmarks/side.py --data PATH --weights PATH"

EXITS = ("layer1.0", "layer1.1", "layer2.0", "layer2.2")
SPLITS = ("train", "calibration", "test")
DROPS = (0.0, 0.01, 0.03)
TARGETS = {
    "ResNet-20, frozen": (0.72, 0.50, 0.38),
    "ResNet-56, frozen": (0.65, 0.45, 0.30),
    "ResNet-20, trained": (0.45, 0.38, 0.30),
}
GRID = [1 - 10 ** (-step / 20) for step in range(1, 80)]
"""Thresholds that are compared."""


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        idea: what differs from the first row.
        options: of the side branches.
        epochs: of training, or of each phase.
        images: number of training images, drawn at random; None takes all.
        method: of training.
        branch: of all exits.
        exits: where they are.
        network: whose exits they are.
        recipe: of the method.
        augment: whether images are cropped and flipped at random.
        seed: of training.
        precision: of training, as of `fit`.
        method_options: of the method, besides the recipe.
        joint_lr: of phases that train the backbone; None takes their own.
        joint_decay: weight decay of the backbone in these phases.
        batch: number of augmented images of a batch.
        start: row whose trained exits are trained further; it must be finished here.
        last_exit: whether no image passes the last exit, which is then at the last block.
    """

    idea: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | Mapping[str, int] = 4
    images: int | None = 10_000
    method: str = "distilled"
    branch: str = "side"
    exits: tuple[str, ...] = EXITS
    network: str = "resnet20"
    recipe: str = "disjoint"
    augment: bool = False
    seed: int = 0
    precision: str | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    joint_lr: float | None = None
    joint_decay: float = 0.0
    batch: int = 256
    start: str | None = None
    last_exit: bool = False

    @property
    def group(self) -> str:
        """Key of `TARGETS`."""
        trained = "frozen" if self.recipe == "disjoint" else "trained"
        return f"{self.network.replace('resnet', 'ResNet-')}, {trained}"


DEEP = {
    "width": 64,
    "resolution": 16,
    "depth": [4, 3, 2],
    "fusion": "gated",
    "reads": "patches",
}
"""A state of 16 x 16 cells, several units at an exit."""

AUGMENTED: dict[str, Any] = {"images": None, "augment": True}

TRAINED: dict[str, Any] = {
    **AUGMENTED,
    "method_options": {"ensembles": True},
    "joint_lr": 0.24,
    "joint_decay": 5e-4,
    "batch": 128,
    "precision": "bf16-mixed",
    "last_exit": True,
}
"""A backbone that is trained at the learning rate and batch size of `methods.py`."""

ROWS = {
    "base": Row("48 channels at 8 x 8, a separable unit an exit, states added"),
    "alone": Row("nothing is passed", {"passes": "nothing"}),
    "detached": Row("the state is passed without gradient", {"passes": "detached"}),
    "wide": Row("96 channels", {"width": 96}),
    "coarse": Row("a state of 4 x 4 cells", {"resolution": 4}),
    "fine": Row("a state of 16 x 16 cells", {"resolution": 16}),
    "finest": Row("a state of 32 x 32 cells at the first exits", {"resolution": [32, 32, 16, 8]}),
    "first": Row("four units at the first exit", {"depth": [4, 1]}),
    "concat": Row("states are concatenated", {"fusion": "concat"}),
    "gated": Row("states are gated", {"fusion": "gated"}),
    "full": Row("full convolutions, 32 channels", {"width": 32, "unit": "full"}),
    "labels": Row("labels only, no distillation", method="shallow-deep"),
    "pool": Row("pooled linear heads", branch="pool"),
    "longer": Row("gated, on all images", {"fusion": "gated"}, epochs=6, images=None),
    "deep": Row(
        "64 channels at 16 x 16, 4/3/2 units, gated, all values of a cell are read",
        DEEP,
        epochs=27,
        exits=("layer1.0", "layer1.2", "layer2.1"),
        **AUGMENTED,
    ),
    "early": Row(
        "likewise, 6/2/1 units: more at the first exit",
        {**DEEP, "depth": [6, 2, 1]},
        epochs=25,
        exits=("layer1.0", "layer2.0", "layer2.2"),
        **AUGMENTED,
    ),
    "ensemble": Row(
        "as deep, exits classify by ensembles; one more after the last block, which takes what is "
        "left instead of the final classifier",
        {**DEEP, "depth": [4, 3, 2, 1], "head": "ensemble"},
        epochs={"exits": 24, "ensembles": 10},
        exits=("layer1.0", "layer1.2", "layer2.1", "layer3.2"),
        method_options={"ensembles": True},
        precision="bf16-mixed",
        last_exit=True,
        **AUGMENTED,
    ),
    "trained": Row(
        "as deep, the backbone trained with its exits",
        DEEP,
        epochs=22,
        exits=("layer1.0", "layer1.2", "layer2.1"),
        recipe="joint",
        **AUGMENTED,
    ),
    "trained-later": Row(
        "the first exits of row ensemble, then the backbone trained with them",
        DEEP,
        epochs=12,
        exits=("layer1.0", "layer1.2", "layer2.1"),
        recipe="joint",
        joint_lr=0.06,
        precision="bf16-mixed",
        start="ensemble",
        **AUGMENTED,
    ),
    "trained-ensemble": Row(
        "the exits of row ensemble, then the backbone trained with them",
        {**DEEP, "depth": [4, 3, 2, 1], "head": "ensemble"},
        epochs={"joint": 18, "ensembles": 10},
        exits=("layer1.0", "layer1.2", "layer2.1", "layer3.2"),
        recipe="joint",
        start="ensemble",
        **TRAINED,
    ),
    "trained-fine": Row(
        "likewise, five exits, 2/2/2/1/1 units",
        {**DEEP, "depth": [2, 2, 2, 1, 1], "head": "ensemble"},
        epochs={"exits": 6, "joint": 15, "ensembles": 10},
        exits=("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer3.2"),
        recipe="mixed",
        **TRAINED,
    ),
    "trained-alone": Row(
        "the backbone alone, trained on",
        branch="pool",
        epochs=50,
        exits=("layer3.1",),
        method="backbone-only",
        recipe="joint",
        joint_lr=0.3,
        joint_decay=5e-4,
        batch=512,
        precision="bf16-mixed",
        **AUGMENTED,
    ),
    "deep-56": Row(
        "likewise, 6/4/4/2 units",
        {**DEEP, "depth": [6, 4, 4, 2]},
        epochs=22,
        exits=("layer1.1", "layer1.4", "layer1.8", "layer2.3"),
        network="resnet56",
        **AUGMENTED,
    ),
    "ensemble-56": Row(
        "as deep-56, with ensembles and a last exit as in row ensemble",
        {**DEEP, "depth": [6, 4, 4, 2, 1], "head": "ensemble"},
        epochs={"exits": 22, "ensembles": 10},
        exits=("layer1.1", "layer1.4", "layer1.8", "layer2.3", "layer3.8"),
        network="resnet56",
        method_options={"ensembles": True},
        precision="bf16-mixed",
        last_exit=True,
        **AUGMENTED,
    ),
}


def attached(cifar: Cifar10, row: Row) -> leenet_fx.EarlyExitModule:
    """Return an untrained network of a row."""
    ee = leenet_fx.attach(
        cifar.model,
        row.exits,
        branch=row.branch,
        branch_options=row.options,
        copy=row.recipe != "disjoint",
        name=cifar.name,
        seed=row.seed,
    )
    # Small convolutions train twice as fast in this memory format.
    ee.exits.to(memory_format=torch.channels_last)
    return ee


def measure(
    cifar: Cifar10, name: str, caches: dict[str, FeatureCache], device: str
) -> dict[str, Any]:
    """Train a row's network and return its figures.

    Args:
        cifar: backbone and images.
        name: of the row.
        caches: features of the splits, for rows without augmentation; those of another row are
            replaced where they do not fit.
        device: to train on.
    """
    row = ROWS[name]
    ee = attached(cifar, row).to(device)
    data: dict[str, Any] = {}
    if row.augment:
        images = InMemory(cifar.folder, cifar.model, 32, device=device)
        data = {split: images.loader(split) for split in SPLITS[1:]}
        data["train"] = images.training(seed=row.seed, batch=row.batch, augment=True)
    for split in () if row.augment else SPLITS:
        size = row.images if split == "train" and row.images else None
        if split not in caches or not fits(caches[split], ee, size):
            if split in caches:
                caches.pop(split).close()
            caches[split] = cache_features(ee, images_of(cifar, split, row), name=split)
        data[split] = caches[split]
    if row.start is not None:
        trained = load_file(PARTIAL / f"{row.start}.safetensors")
        own = ee.exits.state_dict()
        trained = {key: trained[key] for key in own if key in trained and key != "thresholds"}
        ee.exits.load_state_dict(own | trained)
    start = time.perf_counter()
    leenet_fx.fit(
        ee,
        data["train"],
        calibration=data["calibration"],
        method=method_of(row),
        epochs=row.epochs,
        seed=row.seed,
        precision=row.precision,
        progress=False,
    )
    seconds = time.perf_counter() - start
    state = {key: value.contiguous() for key, value in ee.exits.state_dict().items()}
    save_file(state, PARTIAL / f"{name}.safetensors")
    return {"seconds": seconds, "device": device} | figures(row, ee, data)


def method_of(row: Row) -> leenet_fx.Method:
    """Return the method of a row."""
    if row.method == "backbone-only":
        return rescheduled(backbone_only(), row.joint_lr, row.joint_decay)
    recipe = {} if row.recipe == "disjoint" else {"recipe": row.recipe}
    method = leenet_fx.get_method(row.method, **recipe, **row.method_options)
    return rescheduled(method, row.joint_lr, row.joint_decay)


def figures(row: Row, ee: leenet_fx.EarlyExitModule, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return costs and accuracies of a trained network, which is brought to the CPU.

    Args:
        row: settings.
        ee: the network.
        data: of each split.
    """
    outputs = {
        split: on_cpu(outputs_of_data(ee, data[split], labelled=True)) for split in SPLITS[1:]
    }
    ee.cpu()
    costs = SubsetCosts(ee, leenet_fx.MaxProbability(1.0), "flops")
    accuracy = [correct(logits, outputs["test"]) for logits in outputs["test"].logits]
    found: dict[str, Any] = {
        "flops": ee.spec.profile.flops,
        "branches": [(c.state + c.hidden + c.classify).flops for c in ee.spec.branch_costs],
        "costs": costs.rows(range(ee.num_exits)),
        "accuracy": accuracy,
    }
    points = list(frontier(outputs, costs, last_exit=row.last_exit))
    found["points"] = [[point["flops"], point["accuracy"]] for point in points]
    backbone = NETWORKS[row.network]
    for drop in DROPS:
        reached = [point for point in points if point["accuracy"] >= backbone - drop - 1e-9]
        best = min(reached, key=lambda point: point["flops"], default=None)
        found[f"{100 * drop:g}"] = best
    return found


def fits(cache: FeatureCache, ee: leenet_fx.EarlyExitModule, size: int | None) -> bool:
    """Return whether a cache is of a network's features, and of as many images as are needed."""
    return cache.fits(ee) and (size is None or len(cache) == size)


def images_of(cifar: Cifar10, split: str, row: Row) -> Iterable[Any]:
    """Return batches of a split; of the train split as many images as the row has, shuffled."""
    if split != "train":
        return cifar.loader(split, batch=HEAD_BATCH)
    data: Any = cifar.loader(split, seed=0, batch=HEAD_BATCH).dataset
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data), generator=generator)[: row.images].tolist()
    return DataLoader(Subset(data, chosen), HEAD_BATCH, shuffle=True, generator=generator)


def on_cpu(outputs: CachedOutputs) -> CachedOutputs:
    """Return a copy of outputs on the CPU."""
    return CachedOutputs(
        tuple(logits.cpu() for logits in outputs.logits),
        tuple(inputs.cpu() for inputs in outputs.gate_inputs),
        outputs.labels.cpu(),
    )


def correct(logits: Tensor, outputs: CachedOutputs) -> float:
    """Return the accuracy of logits (n, classes)."""
    return float((logits.argmax(1) == outputs.labels).double().mean())


def frontier(
    outputs: Mapping[str, CachedOutputs], costs: SubsetCosts, *, last_exit: bool
) -> Iterator[dict[str, Any]]:
    """Yield the points that are best on the calibration split, with figures of the test split.

    Args:
        outputs: of both splits.
        costs: of the network.
        last_exit: whether no image passes the last exit.
    """
    scores = {s: confidences(costs.ee, costs.policy, values) for s, values in outputs.items()}
    if last_exit:
        for values in scores.values():
            values[:, -1] = 1.0
    right = {
        split: torch.stack([z.argmax(1) == values.labels for z in values.logits], 1).double()
        for split, values in outputs.items()
    }
    number = costs.ee.num_exits

    def figures(split: str, exits: tuple[int, ...], threshold: float) -> tuple[float, float]:
        rows = torch.tensor(costs.rows(exits), dtype=torch.float64)
        taken = exits_of(scores[split], threshold, exits)
        hits = right[split].gather(1, taken.unsqueeze(1)).mean()
        return float(rows[taken].mean()), float(hits)

    subsets = [
        exits for k in range(1, number + 1) for exits in itertools.combinations(range(number), k)
    ]
    tried = [
        (*figures("calibration", exits, threshold), exits, threshold)
        for exits in subsets
        if not last_exit or exits[-1] == number - 1
        for threshold in GRID
    ]
    best = 0.0
    for _, accuracy, exits, threshold in sorted(tried):
        if accuracy > best:
            best = accuracy
            flops, hits = figures("test", exits, threshold)
            yield {"flops": flops, "accuracy": hits, "exits": exits, "threshold": threshold}


def stored() -> dict[str, dict[str, Any]]:
    """Return the finished rows, of which those in files of their own replace committed ones."""
    committed = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    files = {path.stem: json.loads(path.read_text()) for path in sorted(PARTIAL.glob("*.json"))}
    return {record["row"]: record for record in committed} | files


def settings(row: Row) -> dict[str, Any]:
    """Return what a finished row must agree with, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(row)))
    return {name: value for name, value in values.items() if name != "idea"}


def is_of(record: Mapping[str, Any], row: Row) -> bool:
    """Return whether a record has a row's settings; those it does not name are the defaults."""
    return {**settings(Row("")), **record.get("settings", {})} == settings(row)


def write(rows: Mapping[str, Row]) -> None:
    """Write the results of finished rows."""
    finished = stored()
    records, table = [], []
    for name, row in rows.items():
        if name not in finished or not is_of(finished[name], row):
            continue
        found = finished[name]
        records.append({**found, "row": name})
        table.append(
            {
                "row": name,
                "network": row.group,
                "idea": row.idea,
                "images": f"{row.images or 'all'}{', augmented' if row.augment else ''}",
                "epochs": row.epochs
                if isinstance(row.epochs, int)
                else " + ".join(f"{count} {phase}" for phase, count in row.epochs.items()),
                "FLOPs of the branches, %": f"{100 * sum(found['branches']) / found['flops']:.1f}",
                "accuracy of each exit, %": " / ".join(f"{100 * a:.1f}" for a in found["accuracy"]),
                **{
                    f"−{100 * drop:g} pt, FLOPs %": "–"
                    if found[f"{100 * drop:g}"] is None
                    else f"{100 * found[f'{100 * drop:g}']['flops']:.1f}"
                    for drop in DROPS
                },
                "training, s": f"{found['seconds']:.0f} ({found['device']})",
            }
        )
    criteria = []
    for group, targets in TARGETS.items():
        for drop, target in zip(DROPS, targets, strict=True):
            key = f"{100 * drop:g}"
            members = [record for record in records if rows[record["row"]].group == group]
            reached = [r[key]["flops"] for r in members if r[key] is not None]
            best = min(reached, default=float("nan"))
            name = f"{group}: FLOPs at −{key} points (best row)"
            criteria.append(Criterion(name, 100 * best, "%", f"≤ {100 * target:g}", best <= target))
    Result(COMMAND, records, criteria, environment()).write(RESULT, "Side branches", table)


def main() -> None:
    """Measure the rows that are not finished, and write all."""
    parser = argparse.ArgumentParser(description="Side branches.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--render", action="store_true", help="Write results of finished rows.")
    options = parser.parse_args()
    if options.render:
        write(ROWS)
        return
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    keep_memory()
    PARTIAL.mkdir(parents=True, exist_ok=True)
    caches: dict[str, FeatureCache] = {}
    with ExitStack() as stack:
        for name in options.rows:
            row = ROWS[name]
            finished = stored().get(name)
            if finished is not None and is_of(finished, row):
                continue
            cifar = Cifar10(row.network, options.data, options.weights)
            found = measure(cifar, name, caches, options.device)
            (PARTIAL / f"{name}.json").write_text(json.dumps({"settings": settings(row), **found}))
            print(name, json.dumps(found), file=sys.stderr, flush=True)
        for cache in caches.values():
            stack.callback(cache.close)
    write(ROWS)


if __name__ == "__main__":
    main()
