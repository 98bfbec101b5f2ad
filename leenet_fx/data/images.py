"""Labelled images in folders, tar files and torchvision's data sets."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name

logger = logging.getLogger("leenet_fx")

LISTED = 5
"""Number of unreadable files that a message lists."""


class ImageFiles(Dataset[tuple[Any, int]]):
    """Labelled images of a folder, or of a tar file, with one folder per class.

    Attributes:
        root: the folder or file.
        classes: names of the classes, in the order of their labels.
        targets: label of each image.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reader = _reader(root)
        labels = getattr(self._reader, "class_to_idx", None) or self._reader.class_name_to_idx
        self.classes = sorted(labels, key=labels.__getitem__)
        samples = self._reader.samples
        targets = getattr(self._reader, "targets", None)
        if targets is None:
            targets = [label for _, label in samples]
        self.targets = [int(label) for label in targets]
        # Positions in the reader; fewer once unreadable images are removed.
        self._positions = list(range(len(samples)))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read an image.

        Raises:
            InputError: it cannot be read; the message lists all images that cannot.
        """
        position = self._positions[index]
        try:
            image = self._open(position)
        except Exception as error:
            raise InputError(self._describe_unreadable(position, error)) from error
        return image, self.targets[index]

    def remove_unreadable(self) -> list[str]:
        """Remove the images that cannot be read, and return their names."""
        unreadable = self._unreadable()
        readable = [
            (position, label)
            for position, label in zip(self._positions, self.targets, strict=True)
            if position not in unreadable
        ]
        self._positions = [position for position, _ in readable]
        self.targets = [label for _, label in readable]
        return [self._name(position) for position in sorted(unreadable)]

    def _open(self, position: int) -> Image.Image:
        if self.root.is_dir():
            with Image.open(self._reader.samples[position][0]) as image:
                image.load()
            return image
        # The tar file is opened for each image, so that worker processes share no file position.
        entry = self._reader.samples[position][0]
        with self.root.open("rb") as tar:
            tar.seek(entry.offset_data)
            image = Image.open(io.BytesIO(tar.read(entry.size)))
        image.load()
        return image

    def _unreadable(self) -> set[int]:
        """Return the positions of images that cannot be read."""
        unreadable = set()
        for position in self._positions:
            try:
                self._open(position)
            except Exception:
                unreadable.add(position)
        return unreadable

    def _name(self, position: int) -> str:
        return str(self._reader.filename(position))

    def _describe_unreadable(self, position: int, error: Exception) -> str:
        unreadable = sorted(self._unreadable() | {position})
        names = ", ".join(self._name(one) for one in unreadable[:LISTED])
        more = f" and {len(unreadable) - LISTED} more" if len(unreadable) > LISTED else ""
        return (
            f"{len(unreadable)} of {len(self)} images in '{self.root}' cannot be read: "
            f"{names}{more} ({self._name(position)}: {error}). Repair them, or skip them with "
            "skip_bad=True (--skip-bad)."
        )


class LabelledSubset(Subset[Any]):
    """Part of a data set, with the labels available without reading images.

    Attributes:
        dataset: the data set.
        indices: indices of the samples in it.
        targets: label of each sample of the subset.
    """

    def __init__(
        self, dataset: Dataset[Any], indices: Sequence[int], targets: Sequence[int]
    ) -> None:
        """Select samples.

        Args:
            dataset: the data set.
            indices: indices of the samples in it.
            targets: labels of the whole data set.
        """
        super().__init__(dataset, list(indices))
        self.targets = [targets[index] for index in self.indices]


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """A data set of (PIL image, label) with a transform applied to the images."""

    def __init__(self, dataset: LabelledSubset, transform: Callable[[Any], Tensor]) -> None:
        self.dataset = dataset
        self.targets = dataset.targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.transform(image), int(label)


class TensorImages(Dataset[tuple[Image.Image, int]]):
    """Images of a tensor as PIL images, which take the same transforms as image files."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Wrap tensors.

        Args:
            images: (n, 1, H, W), values in 0..1.
            labels: (n,) class indices.
        """
        self.images = images
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        grey = (self.images[index, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(grey.numpy()), self.targets[index]


def open_files(root: Path, skip_bad: bool = False) -> ImageFiles:
    """Open a folder or a tar file.

    Args:
        root: the folder or file.
        skip_bad: whether to skip images that cannot be read, with a warning.

    Raises:
        InputError: it is missing, has no images, or has a class without images.
    """
    if not root.exists():
        raise InputError(f"No folder or file '{root}'.")
    if root.is_file() and root.suffix != ".tar":
        raise InputError(
            f"'{root}' is neither a folder nor a .tar file; unpack or decompress it first."
        )
    files = ImageFiles(root)
    if skip_bad:
        skipped = files.remove_unreadable()
        if skipped:
            names = ", ".join(skipped[:LISTED]) + (", …" if len(skipped) > LISTED else "")
            logger.warning(
                "%d of %d images in '%s' cannot be read and are skipped: %s",
                len(skipped),
                len(skipped) + len(files),
                root,
                names,
            )
    present = set(files.targets)
    empty = [name for label, name in enumerate(files.classes) if label not in present]
    if root.is_dir():
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        empty += [name for name in folders if name not in files.classes]
    if empty:
        raise InputError(f"Class folder '{root / empty[0]}' has no images.")
    return files


def open_torchvision(name: str, root: Path, train: bool, download: bool) -> Dataset[Any]:
    """Open one of torchvision's data sets of labelled images.

    Args:
        name: name of its class.
        root: folder of torchvision's data sets.
        train: whether to open the training split or the test split.
        download: whether torchvision may download it.

    Raises:
        UnknownNameError: no such data set.
        InputError: it is not in `root`, or has no training and test split.
    """
    import inspect

    from torchvision import datasets

    known = {
        other
        for other in datasets.__all__
        if {"train", "split"} & set(_parameters(getattr(datasets, other)))
    }
    if name not in known:
        raise unknown_name("data set", name, known)
    build = getattr(datasets, name)
    parameters = inspect.signature(build).parameters
    options: dict[str, Any] = {}
    if "download" in parameters:
        options["download"] = download
    if "train" in parameters:
        options["train"] = train
    else:
        options["split"] = "train" if train else "test"
    try:
        dataset = build(str(root), **options)
    except Exception as error:
        raise InputError(
            f"Data set '{name}' cannot be read from '{root}': {error} download=True (--download) "
            "downloads it; root= (--root) is the folder it is in."
        ) from error
    assert isinstance(dataset, Dataset)
    return dataset


def labels_of(dataset: Any) -> list[int]:
    """Return the labels of a data set, without reading images if it stores them."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return [int(value) for value in values]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _parameters(build: Any) -> list[str]:
    import inspect

    try:
        return list(inspect.signature(build).parameters)
    except (TypeError, ValueError):
        return []


def _reader(root: Path) -> Any:
    """Return timm's reader of a folder or tar file."""
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    try:
        if root.is_dir():
            return ReaderImageFolder(str(root))
        # A cached table of contents would be a pickle file.
        reader = ReaderImageInTar(str(root), cache_tarfiles=False, cache_tarinfo=False)
    except RuntimeError as error:
        raise InputError(f"'{root}' has no images in class folders: {error}") from error
    except Exception as error:
        raise InputError(f"'{root}' cannot be read: {error}") from error
    if not len(reader):
        raise InputError(f"'{root}' has no images in class folders.")
    return reader
