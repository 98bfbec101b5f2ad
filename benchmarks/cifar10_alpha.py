"""CIFAR-10: LEENet's gates on frozen ResNet-20 and ResNet-56, α from 0 to 1.

    python benchmarks/cifar10_alpha.py --data PATH --weights PATH

Heads with convolutions stand behind two or three blocks, fitted on augmented images of `fit` (see
`cifar10.py`); gates, which read how sure this head and the ones before are, are fitted on
`calibrate`; figures are of `report`, which nothing is fitted to.
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
    fitted_heads,
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
"""LEENet's published sweep (ResNet-50, Imagenette): accuracy and seconds a batch."""


def run(cifar: Cifar10, seeds: int) -> tuple[Sweep, dict[str, Any], float]:
    """One network: its sweep, the record for the page, and the seconds a seed takes."""
    sweeps = []
    seconds = 0.0
    for seed in range(seeds):
        ee, trained = fitted_heads(cifar, seed)
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
        seconds = max(seconds, trained + time.perf_counter() - start)
    found = replace(sweeps[0], points=tuple(p for one in sweeps for p in one.points))
    record = make_record(
        found,
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
    return found, record, seconds


def figures(name: str, found: Sweep, seconds: float) -> list[Criterion]:
    """What was asked for, beside what was found."""
    rows = found.medians()
    plain = found.backbone_accuracy
    published = NETWORKS[name]
    made = [
        Criterion(
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
        Criterion(f"{name}: FLOPs at ≤ 3 points lost", 100 * best, "%", "≤ 58", best <= 0.58),
        Criterion(f"{name}: rises beyond the error bars", breaks, "", "0", breaks == 0),
        Criterion(f"{name}: lost at α = 0", lost, "points", "≤ 0.3", lost <= 0.3),
        Criterion(f"{name}: at the first exit, α = 1", at_first, "%", "≥ 99", at_first >= 99),
        Criterion(
            f"{name}: heads and 21 α, a seed", seconds / 60, "minutes", "≤ 30", seconds <= 1800
        ),
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
    options = arguments("The α sweep on CIFAR-10.")
    rows: list[dict[str, Any]] = []
    found_figures: list[Criterion] = []
    records = []
    for name in options.networks:
        found, record, seconds = run(Cifar10(name, options.data, options.weights), options.seeds)
        print(found.summary(), file=sys.stderr)
        for row in found.medians():
            leenet = LEENET.get(row["alpha"])
            rows.append(
                {
                    "network": name,
                    **row,
                    "plain_accuracy": found.backbone_accuracy,
                    "leenet_accuracy": leenet and leenet[0],
                    "leenet_seconds": leenet and leenet[1],
                }
            )
        found_figures += figures(name, found, seconds)
        records.append(record)
        result = Result(
            COMMAND,
            rows,
            found_figures,
            environment(),
        )
        result.write(RESULT, "LEENet's gates on CIFAR-10, α from 0 to 1", table(rows))
        write_page(RESULT.with_suffix(".html"), records, "LEENet's gates on CIFAR-10")


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
