"""CIFAR-10: LEENet's gates on frozen ResNet-20 and ResNet-56, α from 0 to 1.

    python benchmarks/cifar10_alpha.py --data PATH --weights PATH

Convolutional branches after two or three blocks are trained on augmented images of the train split
(see `cifar10.py`). Gates, which read the confidences of this and earlier heads, are trained on the
calibration split. Accuracies are of the test split.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

from cifar10 import (
    EXITS,
    HEAD_BATCH,
    HEAD_EPOCHS,
    NETWORKS,
    RESULTS,
    Cifar10,
    arguments,
    trained_branches,
)

from leenet_fx.environment import environment
from leenet_fx.evaluation.sweep import Sweep, sweep
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_record
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "cifar10_alpha.json"
COMMAND = "python benchmarks/cifar10_alpha.py --data PATH --weights PATH"
GATE_EPOCHS = 60
TIMED = 256

LEENET = {
    0.0: (0.9918, 0.115),
    0.75: (0.9788, 0.112),
    0.80: (0.9477, 0.103),
    0.85: (0.8810, 0.056),
    0.90: (0.8788, 0.047),
    0.95: (0.8646, 0.046),
    1.0: (0.3516, 0.016),
}
"""LEENet's published sweep (ResNet-50, Imagenette): accuracy and latency per batch (s)."""


def run(cifar: Cifar10, seeds: int) -> tuple[Sweep, dict[str, Any], float]:
    """Return the sweep of one network, its record for the page, and the seconds per seed."""
    sweeps = []
    seconds = 0.0
    for seed in range(seeds):
        ee, training = trained_branches(cifar, seed)
        start = time.perf_counter()
        gates = cifar.loader("calibration", seed=seed)
        sweeps.append(
            sweep(
                ee,
                gates,
                cifar.loader("test"),
                seeds=(seed,),
                epochs={"exits": 0, "gates": GATE_EPOCHS},
                timed=0 if seed else TIMED,
                progress=True,
            )
        )
        seconds = max(seconds, training + time.perf_counter() - start)
    result = replace(sweeps[0], points=tuple(p for one in sweeps for p in one.points))
    record = make_record(
        result,
        ee,
        command=COMMAND,
        config={
            "exits": list(EXITS[cifar.name]),
            "branch": "conv",
            "branch_options": {"gate": "history"},
            "heads": {
                "method": "distilled",
                "epochs": HEAD_EPOCHS[cifar.name],
                "batch_size": HEAD_BATCH,
                "precision": "bf16-mixed",
                "augmented": True,
            },
            "gate_epochs": GATE_EPOCHS,
            "seeds": seeds,
            "timed": TIMED,
        },
        classes=cifar.images.classes,
    )
    return result, record, seconds


def criteria(name: str, result: Sweep, seconds: float) -> list[Criterion]:
    """Return the criteria and whether they are met."""
    rows = result.medians()
    backbone = result.backbone_accuracy
    published = NETWORKS[name]
    accuracy = [
        Criterion(
            f"{name}: accuracy of the backbone, test split",
            100 * backbone,
            "%",
            f"{100 * published:.2f}",
            abs(backbone - published) < 5e-5,
        )
    ]
    if name != "resnet56":
        return accuracy
    near = [row for row in rows if backbone - row["accuracy"] <= 0.03]
    best = min(row["relative_flops"] for row in near)
    first, last = rows[0], rows[-1]
    drop = 100 * (backbone - first["accuracy"])
    at_first = 100 * last["shares"][0]
    increases = count_increases(rows)
    return [
        *accuracy,
        Criterion(
            f"{name}: FLOPs at an accuracy drop ≤ 3 points", 100 * best, "%", "≤ 58", best <= 0.58
        ),
        Criterion(
            f"{name}: increases beyond the range of seeds", increases, "", "0", increases == 0
        ),
        Criterion(f"{name}: accuracy drop at α = 0", drop, "points", "≤ 0.3", drop <= 0.3),
        Criterion(
            f"{name}: exit rate of the first exit, α = 1", at_first, "%", "≥ 99", at_first >= 99
        ),
        Criterion(
            f"{name}: branches and 21 α, per seed", seconds / 60, "minutes", "≤ 30", seconds <= 1800
        ),
    ]


def count_increases(rows: list[dict[str, Any]]) -> int:
    """Count increases of FLOPs or accuracy with α that are larger than the range of the seeds."""
    increases = 0
    for first, second in pairwise(rows):
        increases += second["flops_low"] > first["flops_high"]
        increases += second["accuracy_low"] > first["accuracy_high"]
    return increases


def main() -> None:
    """Run both networks and write JSON, Markdown and the page."""
    options = arguments("Sweep of α on CIFAR-10.")
    rows: list[dict[str, Any]] = []
    results: list[Criterion] = []
    records = []
    for name in options.networks:
        network, record, seconds = run(Cifar10(name, options.data, options.weights), options.seeds)
        print(network.summary(), file=sys.stderr)
        for row in network.medians():
            leenet = LEENET.get(row["alpha"])
            rows.append(
                {
                    "network": name,
                    **row,
                    "backbone_accuracy": network.backbone_accuracy,
                    "leenet_accuracy": leenet and leenet[0],
                    "leenet_seconds": leenet and leenet[1],
                }
            )
        results += criteria(name, network, seconds)
        records.append(record)
        result = Result(
            COMMAND,
            rows,
            results,
            environment(),
        )
        result.write(RESULT, "LEENet's gates on CIFAR-10, α from 0 to 1", table(rows))
        write_page(
            RESULT.with_suffix(".html"), records, "LEENet's gates on CIFAR-10", interactive=False
        )


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Markdown table."""
    return [
        {
            "network": row["network"],
            "α": row["alpha"],
            "accuracy %": f"{100 * row['accuracy']:.2f}",
            "lowest–highest": f"{100 * row['accuracy_low']:.2f}–{100 * row['accuracy_high']:.2f}",
            "accuracy drop": f"{100 * (row['backbone_accuracy'] - row['accuracy']):.2f}",
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
