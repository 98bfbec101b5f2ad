"""The five lines of the README on real images: attach, fit, calibrate, evaluate, save.

    python benchmarks/first_lines.py --data PATH --models PATH

Thresholds are chosen on the calibration split for a drop of at most 1 point at confidence 0.95;
accuracy and cost are of the test split. The backbone is frozen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from new_classifier import CASES, Case

import leenet_fx
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = Path(__file__).parent / "results" / "first_lines.json"
COMMAND = "python benchmarks/first_lines.py --data PATH --models PATH"
MAX_DROP = 0.01
LIMITS = {"tf_efficientnet_lite0": 0.65, "resnet20": 0.80}
"""Highest accepted mean FLOPs relative to the backbone, by network."""
STRATEGIES = ("auto", "fine")


def measure(case: Case, strategy: str, data: Path, models: Path) -> dict[str, Any]:
    """Return promise, accuracy and cost of one network, data set and placement."""
    images = leenet_fx.open_data(data / case.data)
    model = case.build(models / case.weights)
    example = torch.zeros(1, 3, case.size, case.size)
    ee = leenet_fx.attach(model, strategy, num_classes=len(images.classes), example_inputs=example)
    transform = leenet_fx.make_transform(model, ee.spec.image_shape)
    shuffle = torch.Generator().manual_seed(0)
    train = images.loader("train", transform, 64, shuffle=shuffle)
    leenet_fx.fit(ee, train, cache=True, progress=False)
    point = leenet_fx.calibrate(
        ee, images.loader("calibration", transform, 64), max_drop=MAX_DROP, confidence=0.95
    )
    print(point, file=sys.stderr, flush=True)
    evaluation = leenet_fx.evaluate(ee, images.loader("test", transform, 64))
    with tempfile.TemporaryDirectory() as folder:
        leenet_fx.save(ee, folder)
    return {
        "network": case.network,
        "data": case.data,
        "strategy": strategy,
        "exits": ee.num_exits,
        "promised": point.promised,
        "calibration_images": point.samples,
        "samples_needed": point.samples_needed,
        "bound": point.bound,
        "calibration_drop": None if point.drop is None else point.drop.estimate,
        "backbone_accuracy": evaluation.backbone_accuracy,
        "accuracy": evaluation.accuracy,
        "flops": evaluation.relative_flops,
        "test_images": evaluation.samples,
    }


def main() -> None:
    """Run all cases whose files are there, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="The README's five lines on real images.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--strategy", action="append", help="placements; repeatable", default=[])
    options = parser.parse_args()
    rows, criteria = [], []
    for case in CASES:
        paths = (options.data / case.data, options.models / case.weights)
        absent = [path for path in paths if not path.exists()]
        if case.network not in LIMITS or absent:
            if absent:
                print(f"Skipped {case.network}: no '{absent[0]}'.", file=sys.stderr)
            continue
        for strategy in options.strategy or STRATEGIES:
            row = measure(case, strategy, options.data, options.models)
            rows.append(row)
            limit = LIMITS[case.network]
            name = f"{case.network}, {case.data}, {strategy}: mean FLOPs"
            flops = row["flops"]
            criteria.append(Criterion(name, flops, "relative", f"≤ {limit}", flops <= limit))
            print(row, file=sys.stderr, flush=True)
            result = Result(COMMAND, rows, criteria, environment())
            result.write(RESULT, "The README's five lines: a drop of at most 1 point", table(rows))
    if not rows:
        sys.exit("Nothing was measured: pass the folders of data sets and weights.")


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Markdown table."""
    return [
        {
            "network": row["network"],
            "data": row["data"],
            "strategy": row["strategy"],
            "exits": row["exits"],
            "calibration images": row["calibration_images"],
            "promised": "yes" if row["promised"] else f"no, needs {row['samples_needed']}",
            "backbone: accuracy %": f"{100 * row['backbone_accuracy']:.2f}",
            "accuracy %": f"{100 * row['accuracy']:.2f}",
            "FLOPs, relative": f"{row['flops']:.3f}",
        }
        for row in rows
    ]


if __name__ == "__main__":
    main()
