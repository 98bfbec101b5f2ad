"""A promise on images of another kind: what noise, blur and contrast do to an operating point.

    python benchmarks/corruption.py --data PATH --models PATH

ResNet-20 on CIFAR-10, frozen, exits after every block; thresholds are calibrated on clean images
for a drop of at most 1 point. The promise is about images like those: on corrupted ones the drop
may be larger, and exit shares tell that the images are others. The drop is against the backbone on
the same corrupted images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from cifar10 import RESULTS, Cifar10
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import leenet_fx
from leenet_fx.data.transforms import transform_config
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = RESULTS / "corruption.json"
COMMAND = "python benchmarks/corruption.py --data PATH --models PATH"
MAX_DROP = 0.01
LEVEL = 0.95
EPOCHS = 12


STRENGTHS = {
    "noise": (0.02, 0.04, 0.08, 0.12, 0.2),
    "blur": (0.4, 0.6, 0.8, 1.0, 1.5),
    "contrast": (0.8, 0.6, 0.4, 0.3, 0.2),
}
"""Standard deviation of the noise, images in [0, 1]; that of a Gaussian of 5×5 pixels; factor."""


def corrupted(kind: str, strength: float, images: Tensor) -> Tensor:
    """Return corrupted images in [0, 1]."""
    if kind == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + strength * noise).clamp(0, 1)
    if kind == "blur":
        return F.gaussian_blur(images, [5, 5], [strength, strength])
    return F.adjust_contrast(images, strength)


def measure(ee: leenet_fx.EarlyExitModule, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return accuracies, mean cost, and whether 500 images in use show the drift."""
    parts = list(zip(images.split(500), labels.split(500), strict=True))
    right = best = agreed = 0
    spent = 0.0
    monitor = leenet_fx.DriftMonitor(ee)
    seen = 0
    for batch, classes in parts:
        found = monitor.predict(batch)
        final = ee.predict(batch, ee.num_exits).logits.argmax(1)
        predicted = found.logits.argmax(1)
        right += int((predicted == classes).sum())
        best += int((final == classes).sum())
        agreed += int((predicted == final).sum())
        spent += float(found.cost.double().sum())
        if monitor.drifted and not seen:
            seen = monitor.samples
    number = len(images)
    return {
        "backbone_accuracy": best / number,
        "accuracy": right / number,
        "drop": (best - right) / number,
        "disagreement": 1 - agreed / number,
        "flops": spent / number,
        "warned_after": seen or None,
        "images": number,
    }


def main() -> None:
    """Calibrate on clean images, measure on corrupted ones, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Operating points on corrupted images.")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    options = parser.parse_args()
    if not (options.data / "cifar10").exists() or not options.models.exists():
        sys.exit(f"Needs '{options.data / 'cifar10'}' and '{options.models}'.")
    cifar = Cifar10("resnet20", options.data / "cifar10", options.models)
    ee = leenet_fx.attach(cifar.model, "every", example_inputs=torch.zeros(1, 3, 32, 32))
    leenet_fx.fit(ee, cifar.loader("train", seed=0, batch=128), epochs=EPOCHS, cache=True)
    point = leenet_fx.calibrate(
        ee, cifar.loader("calibration"), max_drop=MAX_DROP, confidence=LEVEL
    )
    print(point, file=sys.stderr, flush=True)
    batches = list(cifar.loader("test"))
    images = torch.cat([batch for batch, _ in batches])
    labels = torch.cat([batch for _, batch in batches])
    config = transform_config(cifar.model, (3, 32, 32))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.mean, config.std))
    pixels = (images * std + mean).clamp(0, 1)
    rows = [{"kind": "none", "strength": 0.0, **measure(ee, images, labels)}]
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            changed = (corrupted(kind, strength, pixels) - mean) / std
            rows.append({"kind": kind, "strength": strength, **measure(ee, changed, labels)})
            print(rows[-1], file=sys.stderr, flush=True)
    strongest = [row for row in rows if row["strength"] in {s[-1] for s in STRENGTHS.values()}]
    criteria = [
        Criterion("clean test images: drop", rows[0]["drop"], "", "printed", True),
        Criterion(
            "clean test images: warnings of drift",
            int(rows[0]["warned_after"] is not None),
            "",
            "0",
            rows[0]["warned_after"] is None,
        ),
        Criterion(
            "strongest noise, blur and contrast: warnings of drift",
            sum(row["warned_after"] is not None for row in strongest),
            "of 3",
            "3",
            all(row["warned_after"] is not None for row in strongest),
        ),
    ]
    title = "A calibrated operating point on corrupted images"
    Result(COMMAND, rows, criteria, environment()).write(RESULT, title)


if __name__ == "__main__":
    main()
