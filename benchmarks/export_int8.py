"""Accuracy of exports in 8-bit integers, beside that of the backbone in 8-bit integers.

    python benchmarks/export_int8.py --data PATH --models PATH

`tf_efficientnet_lite0` at 160 px with three exits and a new final classifier, trained on Caltech by
`fit` on cached features, is exported to `onnx` with `quantize="int8"`, and so is its backbone.
Ranges are calibrated on half of 600 images of the calibration split; accuracies and exits before
and after are those of the other half.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

import leenet_fx
from leenet_fx import MaxProbability, NeverExit
from leenet_fx.data.splits import open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

RESULT = Path(__file__).parent / "results" / "export_int8.json"
COMMAND = "python benchmarks/export_int8.py --data PATH --models PATH"
NETWORK = "tf_efficientnet_lite0"
SIZE = 160
IMAGES = 600
THRESHOLDS = (0.5, 0.8)
EPOCHS = 8
MARGIN = 1.0
"""Points of accuracy that exits may lose beyond what the backbone loses: 3 of 300 images."""


def rows(data: Path, models: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for the backbone, and for each threshold."""
    images = open_data(data / "caltech101")
    model = timm.create_model(NETWORK)
    model.load_state_dict(load_file(models / f"{NETWORK}.safetensors"))
    model.eval()
    example = torch.zeros(1, 3, SIZE, SIZE)
    ee = leenet_fx.attach(
        model,
        num_exits=3,
        example_inputs=example,
        num_classes=len(images.classes),
        name=NETWORK,
    )
    transform = make_transform(model, (3, SIZE, SIZE))
    shuffle = torch.Generator().manual_seed(0)
    train = leenet_fx.cache_features(ee, images.loader("train", transform, 64, shuffle=shuffle))
    leenet_fx.fit(ee, train, method="shallow-deep", epochs=EPOCHS, seed=0)
    ee.eval()
    split = images.splits["calibration"]
    chosen = range(len(split))[:: len(split) // IMAGES][:IMAGES]
    batch = torch.stack([transform(split[index][0]) for index in chosen])
    labels = torch.tensor([int(split[index][1]) for index in chosen])
    for threshold in (None, *THRESHOLDS):
        ee.policy = NeverExit() if threshold is None else MaxProbability(threshold)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            options = {"images": batch, "labels": labels}
            result = leenet_fx.export(ee, path, quantize="int8", **options)
        weights = 4 * sum(p.numel() for p in ee.parameters())
        assert result.quantization is not None
        report = result.quantization.to_dict()
        yield {
            "network": "backbone" if threshold is None else f"exits, threshold {threshold}",
            **{key: _rounded(value) for key, value in report.items()},
            "bytes": result.size,
            "bytes / weights with exits": round(result.size / weights, 4),
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Accuracy of exports in 8-bit integers.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in rows(options.data, options.models):
        found.append(row)
        print(row, file=sys.stderr)
        losses = [100 * (row["accuracy_before"] - row["accuracy_after"]) for row in found]
        criteria = [
            Criterion(
                f"{row['network']}: accuracy lost beyond the backbone's {losses[0]:.2f}",
                round(loss - losses[0], 2),
                "points",
                f"≤ {MARGIN:g}",
                loss - losses[0] <= MARGIN,
            )
            for row, loss in zip(found[1:], losses[1:], strict=True)
        ]
        result = Result(COMMAND, found, criteria, environment())
        result.write(RESULT, "Exports in 8-bit integers: accuracy")


if __name__ == "__main__":
    main()
