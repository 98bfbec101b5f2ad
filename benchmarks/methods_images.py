"""Methods on ImageNet networks carried over to the classes of other images."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from in_memory import unseen_images
from new_classifier import CASES, Case
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

_LITE0, _MOBILENETV2 = CASES[:2]
PARTS: dict[str, Case] = {
    f"{name}-{data}": replace(case, data=data)
    for name, case in (("lite0", _LITE0), ("mobilenetv2", _MOBILENETV2))
    for data in ("caltech101", "imagenette")
}


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


def on_images(
    part: str, specs: Sequence[MethodSpec], options: Namespace, out: Path, *, command: str
) -> Comparison:
    """Compare methods on a frozen network, with exits where `attach` places them by default.

    Args:
        part: a key of `PARTS`.
        specs: methods.
        options: `data`, `weights` and `seeds`.
        out: folder of the results.
        command: by which they are measured.
    """
    case = PARTS[part]
    data = honest(options.data / case.data)
    model = with_new_classifier(case, data, options.weights)
    transform = make_transform(model, (3, case.size, case.size))
    example = torch.zeros(1, 3, case.size, case.size)

    def loader(split: str, *, shuffled: bool = False) -> Any:
        shuffle = torch.Generator().manual_seed(0) if shuffled else None
        return data.loader(split, transform, BATCH, shuffle=shuffle)

    ee = leenet_fx.attach(model, example_inputs=example, copy=False, name=part)
    print(f"{part}: exits at {', '.join(ee.spec.placement.names)}", file=sys.stderr, flush=True)
    return compare(
        model,
        specs,
        loader("train", shuffled=True),
        loader("calibration", shuffled=True),
        loader("test"),
        strategy="auto",
        example_inputs=example,
        epochs=EPOCHS,
        seeds=range(options.seeds),
        name=part,
        out=out,
        metadata=make_metadata(
            ee, command=command, config={"epochs": EPOCHS}, classes=data.classes
        ),
        skip_unfit=True,
        progress=True,
    )
