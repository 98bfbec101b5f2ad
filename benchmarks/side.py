"""Side branches on a frozen ResNet-20: what each option is worth, and the frontier.

    python benchmarks/side.py --data PATH --weights PATH [--rows NAME…]

Exits are trained on the train split, without augmentation, from cached features; rows that compare
options train briefly, on a part of it. Points are the
subsets of exits with a common threshold that are best on the calibration split; figures are of the
test split: the least FLOPs of these points within a drop. Finished rows are kept in a file, so an
interrupted benchmark goes on with the next row.
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
from cifar10 import HEAD_BATCH, RESULTS, WORK, Cifar10
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import leenet_fx
from leenet_fx.calibration.cached_outputs import CachedOutputs, compute_outputs, confidences
from leenet_fx.calibration.exit_subsets import SubsetCosts, exits_of
from leenet_fx.environment import environment
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "side.json"
PARTIAL = WORK / "side.json"
COMMAND = "python benchmarks/side.py --data PATH --weights PATH"

EXITS = ("layer1.0", "layer1.1", "layer2.0", "layer2.2")
SPLITS = ("train", "calibration", "test")
DROPS = (0.0, 0.01, 0.03)
TARGETS = {"0": 0.72, "1": 0.50, "3": 0.38}
GRID = [1 - 10 ** (-step / 20) for step in range(1, 80)]
"""Thresholds that are compared."""


@dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        idea: what differs from the first row.
        options: of the side branches.
        epochs: of training.
        images: number of training images, drawn at random; None takes all.
        method: of training.
        branch: of all exits.
        exits: where they are.
    """

    idea: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 4
    images: int | None = 10_000
    method: str = "distilled"
    branch: str = "side"
    exits: tuple[str, ...] = EXITS


ROWS = {
    "base": Row("48 channels at 8 x 8, a separable unit an exit, states added"),
    "alone": Row("nothing is passed", {"passes": "nothing"}),
    "detached": Row("the state is passed without gradient", {"passes": "detached"}),
    "wide": Row("96 channels", {"width": 96}),
    "first": Row("four units at the first exit", {"depth": [4, 1]}),
    "concat": Row("states are concatenated", {"fusion": "concat"}),
    "gated": Row("states are gated", {"fusion": "gated"}),
    "full": Row("full convolutions, 32 channels", {"width": 32, "unit": "full"}),
    "labels": Row("labels only, no distillation", method="shallow-deep"),
    "pool": Row("pooled linear heads", branch="pool"),
    "fine": Row(
        "32 channels at 16 x 16 at the first two exits",
        {"width": [32, 32, 48], "resolution": [16, 16, 8]},
    ),
    "patches": Row("all values of a cell are read", {"reads": "patches"}),
    "longer": Row("gated, on all images", {"fusion": "gated"}, epochs=6, images=None),
}


def attached(cifar: Cifar10, row: Row) -> leenet_fx.EarlyExitModule:
    """Return an untrained network of a row."""
    ee = leenet_fx.attach(
        cifar.model,
        row.exits,
        branch=row.branch,
        branch_options=row.options,
        copy=False,
        name=cifar.name,
    )
    # Small convolutions train twice as fast in this memory format.
    ee.exits.to(memory_format=torch.channels_last)
    return ee


def measure(cifar: Cifar10, row: Row, caches: dict[str, FeatureCache]) -> dict[str, Any]:
    """Train a row's network and return its figures.

    Args:
        cifar: backbone and images.
        row: settings.
        caches: features of the three splits; those of another row are replaced where they do not
            fit.
    """
    ee = attached(cifar, row)
    for split in SPLITS:
        size = row.images if split == "train" and row.images else None
        if split not in caches or not fits(caches[split], ee, size):
            if split in caches:
                caches.pop(split).close()
            caches[split] = cache_features(ee, images_of(cifar, split, row), name=split)
    start = time.perf_counter()
    leenet_fx.fit(ee, caches["train"], method=row.method, epochs=row.epochs, progress=False)
    seconds = time.perf_counter() - start
    outputs = {split: compute_outputs(ee, caches[split]) for split in SPLITS[1:]}
    costs = SubsetCosts(ee, leenet_fx.MaxProbability(1.0), "flops")
    accuracy = [correct(logits, outputs["test"]) for logits in outputs["test"].logits]
    found: dict[str, Any] = {
        "seconds": seconds,
        "branches": [(c.state + c.hidden + c.classify).flops for c in ee.spec.branch_costs],
        "costs": costs.rows(range(ee.num_exits)),
        "accuracy": accuracy,
    }
    points = list(frontier(outputs, costs))
    for drop in DROPS:
        reached = [point for point in points if point["accuracy"] >= accuracy[-1] - drop - 1e-9]
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


def correct(logits: Tensor, outputs: CachedOutputs) -> float:
    """Return the accuracy of logits (n, classes)."""
    return float((logits.argmax(1) == outputs.labels).double().mean())


def frontier(outputs: Mapping[str, CachedOutputs], costs: SubsetCosts) -> Iterator[dict[str, Any]]:
    """Yield the points that are best on the calibration split, with figures of the test split.

    Args:
        outputs: of both splits.
        costs: of the network.
    """
    scores = {s: confidences(costs.ee, costs.policy, values) for s, values in outputs.items()}
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
        for threshold in GRID
    ]
    best = 0.0
    for _, accuracy, exits, threshold in sorted(tried):
        if accuracy > best:
            best = accuracy
            flops, hits = figures("test", exits, threshold)
            yield {"flops": flops, "accuracy": hits, "exits": exits, "threshold": threshold}


def stored() -> dict[str, Any]:
    """Return the finished rows."""
    return json.loads(PARTIAL.read_text()) if PARTIAL.exists() else {}


def settings(row: Row) -> dict[str, Any]:
    """Return what a finished row must agree with, as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(row)))
    return values


def write(rows: Mapping[str, Row]) -> None:
    """Write the results of finished rows."""
    finished = {name: found for name, found in stored().items() if name in rows}
    records, table = [], []
    for name, row in rows.items():
        if name not in finished or finished[name]["settings"] != settings(row):
            continue
        found = finished[name]
        records.append({"row": name, **found})
        table.append(
            {
                "row": name,
                "idea": row.idea,
                "images": row.images or "all",
                "epochs": row.epochs,
                "FLOPs of the branches, %": f"{100 * sum(found['branches']) / found['flops']:.1f}",
                "accuracy of each exit, %": " / ".join(f"{100 * a:.1f}" for a in found["accuracy"]),
                **{
                    f"−{key} pt, FLOPs %": "–"
                    if found[key] is None
                    else f"{100 * found[key]['flops']:.1f}"
                    for key in TARGETS
                },
                "training, s": f"{found['seconds']:.0f}",
            }
        )
    criteria = []
    for key, target in TARGETS.items():
        reached = [r[key]["flops"] for r in records if r[key] is not None]
        best = min(reached, default=float("nan"))
        name = f"ResNet-20, frozen: FLOPs at −{key} points (best row)"
        criteria.append(Criterion(name, 100 * best, "%", f"≤ {100 * target:g}", best <= target))
    Result(COMMAND, records, criteria, environment()).write(RESULT, "Side branches", table)


def main() -> None:
    """Measure the rows that are not finished, and write all."""
    parser = argparse.ArgumentParser(description="Side branches.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    cifar = Cifar10("resnet20", options.data, options.weights)
    WORK.mkdir(exist_ok=True)
    caches: dict[str, FeatureCache] = {}
    with ExitStack() as stack:
        for name in options.rows:
            row = ROWS[name]
            if stored().get(name, {}).get("settings") == settings(row):
                continue
            found = measure(cifar, row, caches)
            backbone = attached(cifar, row).spec.profile.flops
            done = stored() | {name: {"settings": settings(row), "flops": backbone, **found}}
            PARTIAL.write_text(json.dumps(done))
            write(ROWS)
            print(name, json.dumps(found), file=sys.stderr, flush=True)
        for cache in caches.values():
            stack.callback(cache.close)
    write(ROWS)


if __name__ == "__main__":
    main()
