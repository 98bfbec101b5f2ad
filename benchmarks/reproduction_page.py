"""The page of the reproduction, from the files of finished rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar10 import RESULTS
from operating_points import within_cost, within_drop
from reproduction_rows import NOT_HERE, ROWS, Row

from leenet_fx.environment import environment
from leenet_fx.report.results import Result

RESULT = RESULTS / "reproduction.json"
COMMAND = "python benchmarks/reproduction.py --data PATH --weights PATH"
NAMES = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "msdnet": "MSDNet",
    "lite0": "EfficientNet-Lite0",
    "mobilenetv2": "MobileNetV2",
}
DATA = {"cifar10": "CIFAR-10", "imagenette": "Imagenette"}
ACCOUNTING = {
    "flops": "FLOPs, all branches that were run",
    "own branch": "FLOPs, the exit's own branch only",
    "params": "share of parameters used",
}
OWN_POINTS = 3
"""Largest number of points of a method's own rule that are all shown."""


def write(partial: Path) -> None:
    """Write JSON and Markdown of all finished rows; committed rows that are not there are kept."""
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    records = {record["row"]: record for record in kept}
    found = {
        name: json.loads((partial / f"{name}.json").read_text())
        for name in ROWS
        if (partial / f"{name}.json").exists()
    }
    accuracies = {name: record["accuracies"] for name, record in records.items()}
    accuracies |= {name: own["final"] for name, own in found.items()}
    for name, own in found.items():
        records[name] = record_of(name, own, baseline_of(ROWS[name], own, accuracies))
    table = [line(name, row, records.get(name)) for name, row in ROWS.items()]
    table += [
        {"paper": paper, "here": f"not here, because {why}"} for paper, why in NOT_HERE.items()
    ]
    rows = [records[name] for name in ROWS if name in records]
    Result(COMMAND, rows, [], environment()).write(RESULT, "Reproduction of papers", table)


def line(name: str, row: Row, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the line of a row in the table."""
    values = {
        "row": name,
        "paper": row.paper,
        "regime": row.regime,
        "network, data": f"{NAMES[row.network]}, {DATA[row.data]}",
        "cost counted": ACCOUNTING[row.accounting],
        "claim": row.claim,
    }
    if record is None:
        return {**values, "here": "not here, because it has not been run"}
    return {**values, "here": "; ".join(record["figures"]), "trained": trained(record)}


def reported(values: Mapping[str, Any]) -> str:
    """Return the split that is reported: images that are new to the backbone, if there are any."""
    return "unseen" if "unseen" in values else "test"


def baseline_of(
    row: Row, own: Mapping[str, Any], accuracies: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return the accuracy that drops are measured from, by split.

    Args:
        row: of the reproduction.
        own: what was measured.
        accuracies: of the final classifiers of all finished rows, by row and split.
    """
    if row.agreement:
        return dict.fromkeys(own["final"], 1.0)
    if row.reference is not None and row.reference in accuracies:
        return dict(accuracies[row.reference])
    return dict(own["backbone"] or own["final"])


def figures(row: Row, own: Mapping[str, Any], baseline: Mapping[str, float]) -> list[str]:
    """Return what was measured, in the terms of the paper."""
    split = reported(baseline)
    name = "agreement" if row.agreement else "accuracy"
    parts = []
    if row.agreement:
        parts.append(f"backbone {percent(own['final'][split])}")
    elif row.method == "backbone-only":
        return [f"{percent(own['final'][split])} (as given {percent(own['backbone'][split])})"]
    else:
        parts.append(
            f"baseline {percent(baseline[split])}, final classifier {percent(own['final'][split])}"
        )

    def shown(point: Mapping[str, Any]) -> str:
        drop = 100 * (point[split]["accuracy"] - baseline[split])
        return f"{drop:+.1f} points of {name} at {percent(point[split]['cost'])}"

    for ensemble in own["ensembles"]:
        parts.append(f"soft ensemble {percent(ensemble[split])}")
    own_rule = [point for point in own["points"] if point["rule"] == "own"]
    swept = [point for point in own["points"] if point["rule"] == "swept"]
    if 0 < len(own_rule) <= OWN_POINTS:
        parts += [f"own rule, λ = {at['cost weight']:g}: {shown(at)}" for at in own_rule]
    for rule, points in (("own rule", own_rule), ("thresholds", swept)):
        if not points or (rule == "own rule" and len(points) <= OWN_POINTS):
            continue
        for found, wanted in (
            (row.at_cost, f"for a cost of {percent(row.at_cost or 0)}"),
            (row.at_drop, f"for −{100 * (row.at_drop or 0):g} points"),
        ):
            if found is None:
                continue
            by_cost = wanted.startswith("for a cost")
            point = (
                within_cost(points, found)
                if by_cost
                else within_drop(points, baseline["calibration"], found)
            )
            text = "not reached" if point is None else shown(point)
            parts.append(f"{rule}, chosen {wanted}: {text}")
    for at in own.get("times", ()):
        parts.append(
            f"α = {at['cost weight']:g}, batch {at['batch']}: {percent(at['time'])} of the time at "
            f"{percent(at['flops'])} of the FLOPs"
        )
    return parts


def record_of(name: str, own: Mapping[str, Any], baseline: Mapping[str, float]) -> dict[str, Any]:
    """Return the record of a row, with the test split's points only."""
    row = ROWS[name]
    split = reported(baseline)
    return {
        "row": name,
        "paper": row.paper,
        "claim": row.claim,
        "settings": own["settings"],
        "given": own.get("given"),
        "device": own["device"],
        "seconds": round(own["seconds"], 1),
        "flops": own["flops"],
        "split": split,
        "baseline": baseline[split],
        "final": own["final"][split],
        "accuracies": own["final"],
        "exits": own["exits"],
        "ensembles": [
            {"cost weight": e["cost weight"], "accuracy": e[split]} for e in own["ensembles"]
        ],
        "points": [
            {
                "rule": point["rule"],
                "value": point["value"],
                "cost weight": point["cost weight"],
                "cost": round(point[split]["cost"], 4),
                "accuracy": round(point[split]["accuracy"], 4),
            }
            for point in own["points"]
        ],
        "times": own.get("times", []),
        "figures": figures(row, own, baseline),
    }


def trained(record: Mapping[str, Any]) -> str:
    """Return how a row was trained."""
    settings = record["settings"]
    epochs = settings["epochs"]
    if isinstance(epochs, dict):
        epochs = " + ".join(f"{count} {phase}" for phase, count in epochs.items())
    images = "" if settings["images"] is None else f", at most {settings['images']} images a split"
    given = record.get("given")
    batch = "" if given is None else f", batches of {given['batch']}"
    return f"{epochs} epochs{images}{batch}, {record['seconds']:.0f} s, {record['device']}"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f} %"
