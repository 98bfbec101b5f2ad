"""Figures of the documentation: exits of ResNet-20 on CIFAR-10 with a calibrated threshold.

`python benchmarks/figures.py --data PATH --weights PATH` writes docs/pages/example-*.svg in a few
minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from cifar10 import Cifar10
from torch.utils.data import DataLoader, Subset

import leenet_fx
from leenet_fx.report import exit_figures, reliability_figures, threshold_figures
from leenet_fx.report.records import describe_network
from leenet_fx.storage.files import write_atomically

PAGES = Path(__file__).parents[1] / "docs" / "pages"
IMAGES = {"train": 9000, "calibration": 3000, "test": 3000}
EXITS = 4
EPOCHS = 8
MAX_DROP = 0.03


def main() -> None:
    """Fit, calibrate and evaluate, and write the figures."""
    parser = argparse.ArgumentParser(description="Figures of the documentation.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    cifar = Cifar10("resnet20", options.data, options.weights)
    example = torch.zeros(1, 3, 32, 32)
    ee = leenet_fx.attach(
        cifar.model, "linear", num_exits=EXITS, example_inputs=example, name="resnet20"
    )
    leenet_fx.fit(ee, subset(cifar, "train"), epochs=EPOCHS, cache=True)
    print(leenet_fx.calibrate(ee, subset(cifar, "calibration"), max_drop=MAX_DROP))
    evaluation = leenet_fx.evaluate(ee, subset(cifar, "test"))
    print(evaluation)
    values = json.loads(json.dumps(evaluation.to_dict()))
    for name, svg in {
        "exits": exit_figures.network(describe_network(ee), "exits"),
        "frontier": threshold_figures.tradeoff_of_thresholds(values, "frontier"),
        "thresholds": threshold_figures.over_thresholds(values, "thresholds"),
        "reliability": reliability_figures.reliability(values, "reliability"),
    }.items():
        write_atomically(PAGES / f"example-{name}.svg", svg + "\n")


def subset(cifar: Cifar10, split: str) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Return random images of a split."""
    images = cifar.loader(split).dataset
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return DataLoader(Subset(images, order[: IMAGES[split]].tolist()), batch_size=64)


if __name__ == "__main__":
    main()
