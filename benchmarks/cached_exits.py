"""Outputs of quickly trained exits on real images, computed once and stored.

Both networks have frozen backbones and linear classifiers on pooled features after many blocks.
The files of the data and weights are not part of the repository; the README of the models that
are used here describes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from cifar10 import FACTORY, WORK
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import leenet_fx
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import CachedOutputs, compute_outputs, concatenate
from leenet_fx.cli.options import BackboneOptions
from leenet_fx.cli.setup import build
from leenet_fx.data.splits import open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.features.feature_cache import cache_features

EPOCHS = 12
BATCH = 128

NETWORKS = {
    "cifar10": ("resnet20_cifar10.safetensors", (3, 32, 32), "every", None),
    "caltech101": ("tf_efficientnet_lite0.safetensors", (3, 160, 160), "linear", 8),
}
"""Data set → file of weights, input shape, placement strategy and number of exits."""


def missing(name: str, data: Path, models: Path) -> Path | None:
    """Return the first file or folder that the outputs of a data set need and that is missing."""
    for path in (data / name, models / NETWORKS[name][0]):
        if not path.exists():
            return path
    return None


def cached_exits(name: str, data: Path, models: Path) -> tuple[CachedOutputs, tuple[float, ...]]:
    """Return the outputs of a network on all test images, and the N+1 relative costs.

    Args:
        name: "cifar10" or "caltech101".
        data: folder of the data sets.
        models: folder of the weights.
    """
    file = WORK / f"outputs-{name}.safetensors"
    costs = file.with_suffix(".json")
    if not costs.exists():
        outputs, values = _compute(name, data, models)
        tensors = {f"logits.{i}": logits for i, logits in enumerate(outputs.logits)}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, "labels": outputs.labels}, file)
        costs.write_text(json.dumps(values))
    stored = load_file(file)
    values = json.loads(costs.read_text())
    logits = tuple(stored[f"logits.{i}"] for i in range(len(values)))
    empty: tuple[Tensor, ...] = tuple(torch.empty(len(logits[0]), 0) for _ in logits[:-1])
    return CachedOutputs(logits, empty, stored["labels"]), tuple(values)


def _compute(name: str, data: Path, models: Path) -> tuple[CachedOutputs, tuple[float, ...]]:
    weights, shape, strategy, num_exits = NETWORKS[name]
    images = open_data(data / name)
    model: nn.Module
    if name == "cifar10":
        model = build(f"{FACTORY}:resnet20", BackboneOptions(weights=models / weights))
        classes = None
    else:
        model = build(f"timm/{Path(weights).stem}", BackboneOptions(weights=models / weights))
        classes = len(images.classes)
    transform = make_transform(model, shape)
    ee = leenet_fx.attach(
        model,
        strategy,
        num_exits=num_exits,
        num_classes=classes,
        example_inputs=torch.zeros(1, *shape),
        method="shallow-deep",
        copy=False,
        name=name,
    )
    shuffle = torch.Generator().manual_seed(0)
    train = images.loader("train", transform, BATCH, shuffle=shuffle)
    print(f"{name}: training {ee.num_exits} exits", file=sys.stderr, flush=True)
    leenet_fx.fit(ee, train, method="shallow-deep", epochs=EPOCHS, cache=True, progress=True)
    parts = []
    for split in ("calibration", "test"):
        with cache_features(ee, images.loader(split, transform, BATCH)) as cache:
            parts.append(compute_outputs(ee, cache))
    return concatenate(parts), monotone_costs(ee)


if __name__ == "__main__":
    for dataset in sys.argv[3:]:
        cached_exits(dataset, Path(sys.argv[1]), Path(sys.argv[2]))
