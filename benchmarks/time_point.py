"""Time at a drop of one point: exits placed and thresholds solved by seconds, and by FLOPs.

    python benchmarks/time_point.py --data PATH --models PATH [--fit]

EfficientNet-Lite0 at 160 px on Caltech-101, frozen, pooled heads at every boundary. Exits and
thresholds are those that `calibrate(max_drop=…)` chooses on the calibration split, by each cost;
accuracy, FLOPs and time are of the test split, times beside those of the backbone in the same run,
on one thread, with memory kept as the command line does. As in `methods.md`, what counts at one
point is the cheapest of these operating points that loses at most that on the test images.
`--fit` trains only; the measurement wants a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from cifar10 import RESULTS, WORK
from new_classifier import CASES
from torch.utils.data import DataLoader, Subset

import leenet_fx
from leenet_fx.cost.page_faults import keep_memory
from leenet_fx.data.splits import Data
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "time_point.json"
FITTED = WORK / "time-point"
COMMAND = "python benchmarks/time_point.py --data PATH --models PATH"
MAX_DROP = 0.01
SETTINGS = (
    ("flops", 0.95, 0.01, True),
    ("flops", 0.5, 0.01, True),
    ("flops", 0.5, 0.015, True),
    ("flops", 0.5, 0.02, True),
    ("seconds", 0.95, 0.01, True),
    ("seconds", 0.5, 0.01, True),
    ("seconds", 0.5, 0.01, False),
    ("seconds", 0.5, 0.015, True),
    ("seconds", 0.5, 0.02, True),
)
"""Cost, confidence, `max_drop` and `temperatures` of each calibration. With a confidence of 0.5 the
drop of the calibration images is the promised one, without a margin."""
EPOCHS = 12
LIMIT = 0.60
"""Highest accepted time relative to the backbone."""
IMAGES = {1: 400, 32: 1735}
"""Number of test images by batch size."""


def fitted(data: Data, models: Path) -> tuple[leenet_fx.EarlyExitModule, Any]:
    """Return the network with trained exits at every boundary, and its transform.

    Trained exits are kept in a folder.
    """
    case = CASES[0]
    model = case.build(models / case.weights)
    example = torch.zeros(1, 3, case.size, case.size)
    ee = leenet_fx.attach(model, "every", num_classes=len(data.classes), example_inputs=example)
    transform = leenet_fx.make_transform(model, ee.spec.image_shape)
    if (FITTED / "exit_config.json").exists():
        return leenet_fx.load(FITTED, model).eval(), transform
    train = data.loader("train", transform, 64, shuffle=torch.Generator().manual_seed(0))
    leenet_fx.fit(ee, train, epochs=EPOCHS, cache=True, progress=False)
    leenet_fx.save(ee, FITTED)
    return ee, transform


def test_batches(data: Data, transform: Any, batch: int) -> DataLoader[Any]:
    """Return test images, drawn at random, in batches."""
    images = data.loader("test", transform, batch).dataset
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return DataLoader(Subset(images, order[: IMAGES[batch]].tolist()), batch)


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Time at a drop of one point.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--fit", action="store_true", help="train only")
    options = parser.parse_args()
    for path in (options.data / CASES[0].data, options.models / CASES[0].weights):
        if not path.exists():
            sys.exit(f"Skipped: no '{path}'.")
    torch.set_num_threads(1)
    keep_memory()
    data = leenet_fx.open_data(options.data / CASES[0].data)
    ee, transform = fitted(data, options.models)
    if options.fit:
        return
    held_out = leenet_fx.cache_features(ee, data.loader("calibration", transform, 64))
    rows, criteria = [], []
    for batch in IMAGES:
        leenet_fx.profile(ee, batch_sizes=(batch,), seconds=20)
        for cost, confidence, max_drop, temperatures in SETTINGS:
            ee.policy = leenet_fx.MaxProbability(1.0)
            point = leenet_fx.calibrate(
                ee,
                held_out,
                max_drop=max_drop,
                confidence=confidence,
                exits="auto",
                cost=cost,
                temperatures=temperatures,
            )
            result = leenet_fx.evaluate(ee, test_batches(data, transform, batch))
            time = result.seconds / result.backbone_seconds
            rows.append(
                {
                    "batch": batch,
                    "placed and solved by": cost,
                    "max_drop": max_drop,
                    "confidence": confidence,
                    "temperatures": temperatures,
                    "exits used": sum(value < float("inf") for value in ee.policy.thresholds),
                    "drop, points": 100 * (result.backbone_accuracy - result.accuracy),
                    "FLOPs": result.relative_flops,
                    "time": time,
                    "backbone, s": result.backbone_seconds,
                    "promised": point.promised,
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
        within = [
            row for row in rows if row["batch"] == batch and row["drop, points"] <= 100 * MAX_DROP
        ]
        best = min((row["time"] for row in within), default=float("inf"))
        name = f"batch {batch}: time at most {100 * MAX_DROP:g} point below"
        criteria.append(Criterion(name, best, "of the backbone", f"≤ {LIMIT:g}", best <= LIMIT))
    held_out.close()
    table = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    Result(COMMAND, rows, criteria, environment()).write(RESULT, "Time at one point", table)


if __name__ == "__main__":
    main()
