"""A saved network, with images that are found, read and transformed as for its fit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leenet_fx.cli import options as o
from leenet_fx.cli.config import FILE, inherited, is_default, read_options
from leenet_fx.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

    from leenet_fx.data.splits import Data
    from leenet_fx.data.transforms import TransformConfig
    from leenet_fx.surgery.module import EarlyExitModule

FITTED = {"model": str, "data": str, "weights": str, "pretrained": bool, "num_classes": int}
"""Options of a fit that verbs on its result take, and the types of their values."""


@dataclass(frozen=True)
class SavedRun:
    """What `leenet-fx fit` left in a folder.

    Attributes:
        ee: the network.
        images: its data set, in splits.
        transform: how images become the network's input.
        fitted: options of the fit.
        data_set: how images are found and read.
    """

    ee: EarlyExitModule
    images: Data
    transform: TransformConfig
    fitted: dict[str, Any]
    data_set: o.DataSetOptions

    def loader(self, split: str, loading: o.LoaderOptions) -> DataLoader[Any]:
        """Return a loader of a split.

        Args:
            split: "train", "val", "calibration" or "test".
            loading: batch size and processes.
        """
        from leenet_fx.data.transforms import build_transform

        transform = build_transform(self.transform)
        return self.images.loader(split, transform, loading.batch_size, workers=loading.workers)


def known_split(split: str) -> str:
    """Return the name of a split, also for its name of schema 1.

    Raises:
        UnknownNameError: no such split.
    """
    from leenet_fx.data.splits import NAMES
    from leenet_fx.registry import unknown_name
    from leenet_fx.storage.upgrade import SPLITS

    found = SPLITS.get(split, split)
    if found not in NAMES:
        raise unknown_name("split", found, NAMES)
    return found


def open_saved(ctx: typer.Context, folder: Path, saved: o.SavedOptions) -> SavedRun:
    """Load a saved network and open its images.

    Args:
        ctx: of the call, whose options take precedence over those of the fit.
        folder: that `leenet-fx fit` wrote.
        saved: options of the call.

    Raises:
        InputError, StorageError: options, files or images that do not fit.
    """
    from leenet_fx.cli.images import (
        check_number_of_classes,
        open_images,
        transform_values,
        warn_if_ordered_otherwise,
        warn_if_resized,
    )
    from leenet_fx.data.transforms import override, transform_config
    from leenet_fx.storage.exits import load
    from leenet_fx.storage.transform_file import read_transform

    fitted = options_of_fit(folder)
    given = transform_values(saved)
    own = {field.name: getattr(saved, field.name) for field in fields(o.DataSetOptions)}
    data_set = inherited(ctx, o.DataSetOptions(**own), fitted)
    network = build_backbone(folder, fitted, saved.model, saved.weights)
    ee = load(folder, network)
    classes = None
    if is_default(ctx, "classes") and data_set.classes is not None:
        # The network holds the names that the fit read from its file.
        classes = ee.spec.class_names
    images = open_images(saved.data or str(fitted.get("data", "digits")), data_set, classes)
    check_number_of_classes(ee, images)
    transform = read_transform(folder)
    if transform is None:
        transform = transform_config(network, ee.spec.image_shape, name=ee.spec.profile.model)
    transform = override(transform, **given)
    warn_if_resized(images, transform)
    if fitted and ee.spec.class_names is None:
        warn_if_ordered_otherwise(images)
    return SavedRun(ee, images, transform, fitted, data_set)


def build_backbone(
    folder: Path, fitted: dict[str, Any], model: str | None, weights: Path | None
) -> nn.Module:
    """Build the backbone of a saved network.

    Args:
        folder: of the network.
        fitted: options of its fit.
        model: its name, if not that of the fit.
        weights: file of its weights, if not that of the fit.

    Raises:
        InputError: the fit names a model file, and `model` is None.
        EarlyExitError: as `build` raises.
    """
    from leenet_fx.cli.setup import build

    name = model or _library_model(fitted, folder)
    weights = weights or (Path(fitted["weights"]) if fitted.get("weights") else None)
    return build(
        name,
        o.BackboneOptions(weights=weights, pretrained=bool(fitted.get("pretrained"))),
        num_classes=fitted.get("num_classes"),
    )


def options_of_fit(folder: Path) -> dict[str, Any]:
    """Return the options that `leenet-fx fit` was called with; none if there is no run.yaml."""
    path = folder / FILE
    options = read_options(path) if path.exists() else {}
    for name, kind in FITTED.items():
        if name in options and not isinstance(options[name], kind):
            raise InputError(
                f"'{path}', '{name}': expected {kind.__name__}, found {options[name]!r}."
            )
    return options


def _library_model(fitted: dict[str, Any], folder: Path) -> str:
    name = str(fitted.get("model", ""))
    if ".py:" in name or not name:
        # Reading a result must not run code that the result names.
        raise InputError(
            f"The exits in '{folder}' are for '{name or 'a model of yours'}': name the file that "
            "builds it, --model path.py:factory."
        )
    return name
