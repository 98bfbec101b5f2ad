"""Methods on ImageNet networks carried over to the classes of other images."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cifar10 import WORK
from in_memory import InMemory, unseen_images
from new_classifier import CASES, Case
from safetensors.torch import load_file, save_file
from static_family import accuracy
from torch import nn

import leenet_fx
from leenet_fx.data.splits import Data, open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.evaluation.compare import compare
from leenet_fx.evaluation.comparison import Comparison, MethodSpec
from leenet_fx.report.records import make_metadata

CLASSIFIER_EPOCHS = 30
EPOCHS = {"exits": 30, "gates": 30, "alternating": 30}
"""Of every method: these data sets have some 3,000 images to train on."""

BATCH = 128

ALONE_EPOCHS = 6
MIXED_EPOCHS = {"exits": 5, "joint": 4}
"""Where the backbone is trained: first it alone, then exits on it, then both."""

TRAINED_BATCH = 64
PRECISION = "auto"

_LITE0, _MOBILENETV2 = CASES[:2]
PARTS: dict[str, Case] = {
    f"{name}-{data}": replace(case, data=data)
    for name, case in (("lite0", _LITE0), ("mobilenetv2", _MOBILENETV2))
    for data in ("caltech101", "imagenette")
}

TRAINED = ("lite0-caltech101-trained",)
"""Parts whose backbone is trained on the images of the data set. BatchNorm of MobileNetV2's weights
is folded into the convolutions, so that network is not trained here."""


def honest(folder: Path) -> Data:
    """Return images in splits; those of `unseen.tar`, if there is one, are the test split.

    The networks were trained on the other images of Imagenette.
    """
    data = open_data(folder)
    unseen = unseen_images(folder, data.classes)
    return data if unseen is None else replace(data, splits={**data.splits, "test": unseen})


def with_new_classifier(case: Case, data: Data, models: Path) -> nn.Module:
    """Return a network whose final classifier was trained for the classes of the images."""
    model = case.build(models / case.weights)
    ee = leenet_fx.attach(
        model,
        num_exits=1,
        num_classes=len(data.classes),
        example_inputs=torch.zeros(1, 3, case.size, case.size),
        name=case.network,
    )
    transform = make_transform(model, (3, case.size, case.size))
    shuffle = torch.Generator().manual_seed(0)
    with leenet_fx.cache_features(
        ee, data.loader("train", transform, BATCH, shuffle=shuffle)
    ) as train:
        epochs = {"exits": 0, "final": CLASSIFIER_EPOCHS}
        leenet_fx.fit(ee, train, method="shallow-deep", epochs=epochs, progress=False)
    name = str(ee.spec.final_classifier)
    model.set_submodule(name, ee.get_submodule(name))
    return model.eval()


def train_alone(model: nn.Module, images: InMemory, epochs: int, file: Path) -> None:
    """Train a network on the images of a data set, without exits.

    Args:
        model: with a classifier of the classes; gets the trained weights.
        images: of the data set.
        epochs: number of epochs.
        file: of the weights; they are read if it exists, and written otherwise.
    """
    if not file.exists():
        ee = without_exits(model, images)
        torch.manual_seed(0)
        leenet_fx.fit(
            ee,
            images.training(seed=0, batch=TRAINED_BATCH, augment=True),
            method="backbone-only",
            epochs=epochs,
            precision=PRECISION,
            progress=False,
        )
        found = ee.state_dict()
        file.parent.mkdir(exist_ok=True)
        save_file({name: found[name] for name in model.state_dict()}, file)
    model.load_state_dict(load_file(file))


def without_exits(model: nn.Module, images: InMemory) -> leenet_fx.EarlyExitModule:
    """Return a copy of a network with one exit, which is not trained."""
    example = next(iter(images.loader("test")))[0][:1]
    return leenet_fx.attach(model, num_exits=1, example_inputs=example)


def trained_on(part: str, options: Namespace) -> float:
    """Return the accuracy of the backbone of a part of `TRAINED`, trained on without exits.

    Args:
        part: which was measured.
        options: `data` and `weights`.
    """
    case = PARTS[part.removesuffix("-trained")]
    model = case.build(options.weights / case.weights)
    weights = load_file(WORK / f"{part}.safetensors")
    model.reset_classifier(len(weights["classifier.bias"]))
    model.load_state_dict(weights)
    images = InMemory(options.data / case.data, model, case.size)
    train_alone(model, images, MIXED_EPOCHS["joint"], WORK / f"{part}-on.safetensors")
    return accuracy(without_exits(model, images), images)


def trained_variants() -> list[MethodSpec]:
    """Return methods on a backbone that was trained on the images, frozen and trained on."""
    return [
        MethodSpec("shallow-deep", "shallow-deep", {"recipe": "disjoint"}, branch="pool"),
        MethodSpec("distilled, ensembles", "distilled", {"ensembles": True}, branch="pool"),
        MethodSpec(
            "distilled, ensembles, mixed",
            "distilled",
            {"ensembles": True, "recipe": "mixed"},
            branch="pool",
            epochs=MIXED_EPOCHS,
        ),
    ]


def on_images(
    part: str, specs: Sequence[MethodSpec], options: Namespace, out: Path, *, command: str
) -> Comparison:
    """Compare methods on a network, with exits where `attach` places them by default.

    Args:
        part: a key of `PARTS`, or of `TRAINED`.
        specs: methods.
        options: `data`, `weights` and `seeds`.
        out: folder of the results.
        command: by which they are measured.
    """
    case = PARTS[part.removesuffix("-trained")]
    data = honest(options.data / case.data)
    model = with_new_classifier(case, data, options.weights)
    transform = make_transform(model, (3, case.size, case.size))
    example = torch.zeros(1, 3, case.size, case.size)

    def loader(split: str, *, shuffled: bool = False) -> Any:
        shuffle = torch.Generator().manual_seed(0) if shuffled else None
        return data.loader(split, transform, BATCH, shuffle=shuffle)

    augmented = None
    if part in TRAINED:
        images = InMemory(options.data / case.data, model, case.size)
        train_alone(model, images, ALONE_EPOCHS, WORK / f"{part}.safetensors")
        augmented = images.training(seed=0, batch=TRAINED_BATCH, augment=True)
    ee = leenet_fx.attach(model, example_inputs=example, copy=False, name=part)
    print(f"{part}: exits at {', '.join(ee.spec.placement.names)}", file=sys.stderr, flush=True)
    return compare(
        model,
        specs,
        loader("train", shuffled=True),
        loader("calibration", shuffled=True),
        loader("test"),
        augmented=augmented,
        strategy="auto",
        example_inputs=example,
        epochs=EPOCHS,
        precision=PRECISION if part in TRAINED else None,
        seeds=range(1 if part in TRAINED else options.seeds),
        name=part,
        out=out,
        metadata=make_metadata(
            ee, command=command, config={"epochs": EPOCHS}, classes=data.classes
        ),
        skip_unfit=True,
        progress=True,
    )
