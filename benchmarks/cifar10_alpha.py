"""CIFAR-10: LEENet's gates on frozen ResNet-20 and ResNet-56, α from 0 to 1.

    python benchmarks/cifar10_alpha.py --data PATH --weights PATH

The data are train.tar and test.tar (32x32 images, one folder a class), the weights
resnet20_cifar10.safetensors and resnet56_cifar10.safetensors. Exits are fitted on `fit`, gates on
`calibrate`, figures are of `report`, which nothing is fitted to.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from leenet_fx.cli.setup import attach_by_name
from leenet_fx.data.splits import open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.evaluation.sweep import Sweep, sweep
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_record
from leenet_fx.report.results import Figure, Result, environment

RESULTS = Path(__file__).parent / "results" / "cifar10_alpha.json"
FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
NETWORKS = {"resnet20": 0.8852, "resnet56": 0.9006}
"""Plain accuracy on the report images, as published with the weights."""

LEENET = {
    0.0: (0.9918, 0.115),
    0.75: (0.9788, 0.112),
    0.80: (0.9477, 0.103),
    0.85: (0.8810, 0.056),
    0.90: (0.8788, 0.047),
    0.95: (0.8646, 0.046),
    1.0: (0.3516, 0.016),
}
"""LEENet's published sweep (ResNet-50, Imagenette): accuracy and seconds a batch."""

OPTIONS: dict[str, Any] = {"strategy": "every", "gate": "confidence"}
EPOCHS = {"exits": 8, "gates": 30}
BATCH = 512


def run(
    name: str, data: Path, weights: Path, seeds: int, timed: int
) -> tuple[Sweep, dict[str, Any], float]:
    """One network: its sweep, the record for the page, and the seconds it took."""
    start = time.perf_counter()
    backbone, ee = attach_by_name(
        f"{FACTORY}:{name}",
        name=name,
        weights=weights / f"{name}_cifar10.safetensors",
        **OPTIONS,
    )
    images = open_data(data)
    transform = make_transform(backbone, ee.spec.image_shape)
    generator = torch.Generator().manual_seed(0)
    found = sweep(
        ee,
        images.loader("fit", transform, BATCH, shuffle=generator),
        images.loader("report", transform, BATCH),
        gates=images.loader("calibrate", transform, BATCH, shuffle=generator),
        seeds=range(seeds),
        epochs=EPOCHS,
        timed=timed,
        progress=True,
    )
    seconds = time.perf_counter() - start
    record = make_record(
        found,
        ee,
        command="python benchmarks/cifar10_alpha.py --data PATH --weights PATH",
        config={**OPTIONS, "epochs": EPOCHS, "batch_size": BATCH, "seeds": seeds, "timed": timed},
        classes=images.classes,
    )
    return found, record, seconds


def figures(name: str, found: Sweep, seconds: float) -> list[Figure]:
    """What was asked for, beside what was found."""
    rows = found.medians()
    plain = found.plain_accuracy
    published = NETWORKS[name]
    made = [
        Figure(
            f"{name}: plain accuracy, report images",
            100 * plain,
            "%",
            f"{100 * published:.2f}",
            abs(plain - published) < 5e-5,
        )
    ]
    if name != "resnet56":
        return made
    near = [row for row in rows if plain - row["accuracy"] <= 0.03]
    best = min(row["relative_flops"] for row in near)
    first, last = rows[0], rows[-1]
    lost = 100 * (plain - first["accuracy"])
    at_first = 100 * last["shares"][0]
    breaks = breaks_of_monotony(rows)
    return [
        *made,
        Figure(f"{name}: FLOPs at ≤ 3 points lost", 100 * best, "%", "≤ 58", best <= 0.58),
        Figure(f"{name}: rises beyond the error bars", breaks, "", "0", breaks == 0),
        Figure(f"{name}: lost at α = 0", lost, "points", "≤ 0.3", lost <= 0.3),
        Figure(f"{name}: at the first exit, α = 1", at_first, "%", "≥ 99", at_first >= 99),
        Figure(f"{name}: the whole sweep", seconds / 60, "minutes", "≤ 30", seconds <= 1800),
    ]


def breaks_of_monotony(rows: list[dict[str, Any]]) -> int:
    """How often FLOPs or accuracy rise from one α to a greater one by more than seeds differ."""
    breaks = 0
    for first, second in pairwise(rows):
        breaks += second["flops_low"] > first["flops_high"]
        breaks += second["accuracy_low"] > first["accuracy_high"]
    return breaks


def main() -> None:
    """Runs both networks and writes JSON, Markdown and the page."""
    parser = argparse.ArgumentParser(description="The α sweep on CIFAR-10.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timed", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    rows: list[dict[str, Any]] = []
    found_figures: list[Figure] = []
    records = []
    for name in NETWORKS:
        found, record, seconds = run(
            name, options.data, options.weights, options.seeds, options.timed
        )
        print(found.summary(), file=sys.stderr)
        for row in found.medians():
            leenet = LEENET.get(row["alpha"])
            rows.append(
                {
                    "network": name,
                    **row,
                    "plain_accuracy": found.plain_accuracy,
                    "leenet_accuracy": leenet and leenet[0],
                    "leenet_seconds": leenet and leenet[1],
                }
            )
        found_figures += figures(name, found, seconds)
        records.append(record)
        result = Result(
            "python benchmarks/cifar10_alpha.py --data PATH --weights PATH",
            rows,
            found_figures,
            environment(),
        )
        result.write(options.out, "LEENet's gates on CIFAR-10, α from 0 to 1", table(rows))
        write_page(options.out.with_suffix(".html"), records, "LEENet's gates on CIFAR-10")


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the Markdown shows them."""
    return [
        {
            "network": row["network"],
            "α": row["alpha"],
            "accuracy %": f"{100 * row['accuracy']:.2f}",
            "lowest–highest": f"{100 * row['accuracy_low']:.2f}–{100 * row['accuracy_high']:.2f}",
            "lost": f"{100 * (row['plain_accuracy'] - row['accuracy']):.2f}",
            "FLOPs": f"{row['relative_flops']:.3f}",
            "time": "" if row["time_ratio"] is None else f"{row['time_ratio']:.2f}",
            "mean exit": f"{row['mean_exit']:.2f}",
            "first exit %": f"{100 * row['shares'][0]:.1f}",
            "LEENet: accuracy %": ""
            if row["leenet_accuracy"] is None
            else f"{100 * row['leenet_accuracy']:.2f}",
            "LEENet: time": ""
            if row["leenet_seconds"] is None
            else f"{row['leenet_seconds'] / LEENET[0.0][1]:.2f}",
        }
        for row in rows
    ]


if __name__ == "__main__":
    main()
