"""Images, their transform, and a network for them, from command-line options."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leenet_fx.cli.options import (
    BackboneOptions,
    BranchOptions,
    DataSetOptions,
    LoaderOptions,
    PlacementOptions,
    ShapeOptions,
    TransformOptions,
)
from leenet_fx.cli.setup import attach_exits, build, check_placement, example_images
from leenet_fx.errors import InputError
from leenet_fx.progress import report

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    from leenet_fx.data.splits import Data
    from leenet_fx.data.transforms import TransformConfig
    from leenet_fx.methods import Method
    from leenet_fx.surgery.module import EarlyExitModule

logger = logging.getLogger("leenet_fx")

PROBED = 64
"""Number of images whose size is compared with the network's."""


@dataclass(frozen=True)
class Run:
    """A network with exits, and the images it is fitted or measured on.

    Attributes:
        backbone: shares its weights with `ee`.
        ee: the network with exits.
        images: labelled images in splits.
        config: how they become the network's input.
    """

    backbone: nn.Module
    ee: EarlyExitModule
    images: Data
    config: TransformConfig

    def transform(self, *, augment: bool = False) -> Callable[[Any], Tensor]:
        """Return the transform of the images.

        Args:
            augment: whether to add random crops and flips.
        """
        from leenet_fx.data.transforms import build_transform

        return build_transform(self.config, augment=augment)

    def loaders(
        self, loading: LoaderOptions, seed: int, *, augment: bool = False
    ) -> dict[str, DataLoader[Any]]:
        """Return loaders of the splits to fit on and to measure on, and of "augmented" images.

        Args:
            loading: batch size and processes.
            seed: of the order of the splits "train" and "calibration", which are shuffled.
            augment: whether "augmented", the images of "train", are cropped and flipped.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        plain = self.transform()

        def loader(split: str, transform: Any, shuffled: bool) -> DataLoader[Any]:
            return self.images.loader(
                split,
                transform,
                loading.batch_size,
                shuffle=generator if shuffled else None,
                workers=loading.workers,
            )

        return {
            "train": loader("train", plain, True),
            "augmented": loader("train", self.transform(augment=augment), True),
            "val": loader("val", plain, False),
            "calibration": loader("calibration", plain, True),
            "test": loader("test", plain, False),
        }


def prepare(
    model: str,
    backbone: BackboneOptions,
    placement: PlacementOptions,
    branches: BranchOptions | None,
    shapes: ShapeOptions,
    data: str,
    data_set: DataSetOptions,
    transforms: TransformOptions,
    *,
    method: Method | None = None,
    seed: int = 0,
) -> Run:
    """Build a backbone, open images and attach exits for images of their size.

    Args:
        model: name, or path.py:factory.
        backbone: its weights.
        placement: where exits are placed.
        branches: architecture of the branches; None for the method's.
        shapes: numbers of classes and pixels; a model that names no input size takes that of the
            images.
        data: folder, .tar or name of a data set.
        data_set: how to read it.
        transforms: how images become the network's input.
        method: whose branches are attached where `branches` names none.
        seed: random seed of the exits.

    Raises:
        typer.BadParameter: options that do not go together.
        InputError: the images do not fit the network.
        EarlyExitError: as `create_model`, `open_data` and `attach` raise.
    """
    from leenet_fx.data.transforms import transform_config

    check_placement(placement)
    example = example_images(shapes.input_size)
    given = transform_values(transforms)
    report("model", f"building {model}", None)
    network = build(model, backbone, num_classes=shapes.num_classes)
    report("images", f"opening '{data}'", None)
    images = open_images(data, data_set)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in images.splits.items())
    report("images", f"{len(images.classes)} classes; {sizes}", 1.0)
    if example is None:
        example = _example_of(network, model, images)
    ee = attach_exits(
        network, model, placement, shapes, branches, example, method=method, seed=seed
    )
    check_number_of_classes(ee, images)
    config = transform_config(network, ee.spec.image_shape, name=model, **given)
    warn_if_resized(images, config)
    return Run(network, ee, images, config)


def open_images(data: str, options: DataSetOptions, classes: Sequence[str] | None = None) -> Data:
    """Open images.

    Args:
        data: folder, .tar or name of a data set.
        options: how to read it.
        classes: names of the classes in the order of their labels, if not from a file.

    Raises:
        InputError, UnknownNameError: as `open_data` and `read_class_names` raise.
    """
    from leenet_fx.data.class_names import read_class_names
    from leenet_fx.data.splits import open_data

    if classes is None and options.classes is not None:
        classes = read_class_names(Path(options.classes))
    return open_data(
        data,
        root=options.root,
        download=options.download,
        skip_bad=options.skip_bad,
        classes=classes,
        exif=options.exif_orientation,
    )


def check_number_of_classes(ee: EarlyExitModule, images: Data) -> None:
    """Raise InputError if the numbers of classes of images and network differ."""
    count = len(images.classes)
    if count != ee.spec.num_classes:
        raise InputError(
            f"'{images.name}' has {count} classes, the final classifier of "
            f"{ee.spec.profile.model} has {ee.spec.num_classes}: --num-classes {count} replaces it "
            "by a new one, which fit trains."
        )


def transform_values(options: TransformOptions) -> dict[str, Any]:
    """Return the arguments of `transform_config` that were given.

    Raises:
        InputError: a text is no list of numbers.
    """
    values: dict[str, Any] = {"interpolation": options.interpolation}
    for name, text in (("mean", options.mean), ("std", options.std)):
        if text is None:
            continue
        try:
            values[name] = [float(part) for part in text.split(",")]
        except ValueError:
            raise InputError(
                f"--{name} must be like 0.5 or 0.485,0.456,0.406, got '{text}'."
            ) from None
    return values


def warn_if_resized(images: Data, config: TransformConfig) -> None:
    """Log a warning if images have another size than the network takes."""
    from leenet_fx.data.splits import image_size

    _, height, width = config.image_shape
    split = images.splits["train"]
    for index in range(0, len(split), max(1, len(split) // PROBED)):
        size = image_size(split, index)
        if size != (height, width):
            logger.warning(
                "Images of '%s' are resized to %d x %d pixels, for instance from %d x %d (height "
                "x width).",
                images.name,
                height,
                width,
                *size,
            )
            return


def warn_if_ordered_otherwise(images: Data) -> None:
    """Log a warning if version 0.1.0 numbered these classes, or split their files, otherwise.

    It ordered names by the numbers in them and without regard to case.
    """
    from leenet_fx.data.images import ImageFiles

    same = True
    for split in images.splits.values():
        if not isinstance(split.dataset, ImageFiles):
            return
        names = split.dataset.names
        numbers = {name: number for number, name in enumerate(sorted(names, key=_natural))}
        for (name, label), (other, other_label) in pairwise(
            zip(names, split.dataset.targets, strict=True)
        ):
            same &= label != other_label or numbers[name] < numbers[other]
    if not same or list(images.classes) != sorted(images.classes, key=_natural):
        logger.warning(
            "The exits were fitted by version 0.1.0, which ordered the classes or files of '%s' "
            "otherwise: labels or splits are not those of the fit. Fit again.",
            images.name,
        )


def _natural(name: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _example_of(network: nn.Module, model: str, images: Data) -> torch.Tensor | None:
    """Return a batch of one image of the size of the data if the model names no input size."""
    import torch

    from leenet_fx.graph.input_shape import assumed_shape

    assumed = assumed_shape(network)
    if assumed is None or len(assumed) != 3:
        return None
    size = images.image_size()
    if size is None:
        raise InputError(
            f"{model} names no input size, and the images of '{images.name}' have several sizes: "
            f"pass --input-size, for example {assumed[0]}x224x224."
        )
    return torch.zeros(1, assumed[0], *size)
