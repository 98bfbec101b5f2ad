"""Images in folders, tar files and torchvision's data sets; a bad file is named, not skipped."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name

logger = logging.getLogger("leenet_fx")

NAMED = 5
"""How many bad files an error names."""


class ImageFiles(Dataset[tuple[Any, int]]):
    """Labelled images of a folder with one folder a class, or of a tar file with such folders.

    Attributes:
        root: the folder or file.
        classes: names of the classes, in the order of their labels.
        targets: the label of each image.
        transform: what turns a PIL image into what is wanted; None gives the PIL image.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reader = _reader(root)
        known = getattr(self._reader, "class_to_idx", None) or self._reader.class_name_to_idx
        self.classes = sorted(known, key=known.__getitem__)
        samples = self._reader.samples
        targets = getattr(self._reader, "targets", None)
        found = targets if targets is not None else [label for _, label in samples]
        self.targets = [int(label) for label in found]
        self.transform: Callable[[Image.Image], Any] | None = None
        self._left_out: set[int] = set()
        self._kept = list(range(len(samples)))

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        at = self._kept[index]
        try:
            image = self._open(at)
        except Exception as error:
            raise InputError(self._report(at, error)) from error
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def skip_bad(self) -> list[str]:
        """Leaves out what cannot be read; returns the names."""
        bad = self._bad()
        kept = [(at, label) for at, label in zip(self._kept, self.targets, strict=True)]
        kept = [(at, label) for at, label in kept if at not in bad]
        self._kept = [at for at, _ in kept]
        self.targets = [label for _, label in kept]
        return [self._name(at) for at in sorted(bad)]

    def _open(self, at: int) -> Image.Image:
        if self.root.is_dir():
            with Image.open(self._reader.samples[at][0]) as image:
                image.load()
            return image
        # Opened anew each time: nothing stays open, and worker processes share no position.
        entry = self._reader.samples[at][0]
        with self.root.open("rb") as tar:
            tar.seek(entry.offset_data)
            image = Image.open(io.BytesIO(tar.read(entry.size)))
        image.load()
        return image

    def _bad(self) -> set[int]:
        bad = set()
        for at in self._kept:
            try:
                self._open(at)
            except Exception:
                bad.add(at)
        return bad

    def _name(self, at: int) -> str:
        return str(self._reader.filename(at))

    def _report(self, at: int, error: Exception) -> str:
        bad = sorted(self._bad() | {at})
        names = ", ".join(self._name(one) for one in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        return (
            f"{len(bad)} of {len(self)} images in '{self.root}' cannot be read: {names}{more} "
            f"({self._name(at)}: {error}). Mend them, or leave them out with skip_bad=True "
            "(--skip-bad)."
        )


class Some(Dataset[Any]):
    """Some items of a data set, with labels that are known without reading images."""

    def __init__(
        self, dataset: Dataset[Any], indices: Sequence[int], targets: Sequence[int]
    ) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self.targets = [targets[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


class Transformed(Dataset[tuple[Tensor, int]]):
    """A data set of (PIL image, label) through a transform."""

    def __init__(self, dataset: Some, transform: Callable[[Any], Tensor]) -> None:
        self.dataset = dataset
        self.targets = dataset.targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.transform(image), int(label)


class Pictures(Dataset[tuple[Image.Image, int]]):
    """Tensors in 0..1 as PIL images, so that they take the same transforms as files."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        grey = (self.images[index, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(grey.numpy()), self.targets[index]


def open_files(root: Path, skip_bad: bool = False) -> ImageFiles:
    """Opens a folder or a tar file.

    Raises:
        InputError: it is missing, has no images, or has a class without any.
    """
    if not root.exists():
        raise InputError(f"No folder or file '{root}'.")
    if root.is_file() and root.suffix != ".tar":
        raise InputError(f"'{root}' is no folder and no .tar file; unpack or untar.gz it first.")
    files = ImageFiles(root)
    if skip_bad:
        skipped = files.skip_bad()
        if skipped:
            names = ", ".join(skipped[:NAMED]) + (", …" if len(skipped) > NAMED else "")
            logger.warning(
                "%d of %d images in '%s' cannot be read and are left out: %s",
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
    """One of torchvision's data sets of labelled images, by its class name.

    Raises:
        UnknownNameError: no such data set.
        InputError: it is not at `root`, or has no training and test split.
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
    takes = inspect.signature(build).parameters
    options: dict[str, Any] = {}
    if "download" in takes:
        options["download"] = download
    if "train" in takes:
        options["train"] = train
    else:
        options["split"] = "train" if train else "test"
    try:
        found = build(str(root), **options)
    except Exception as error:
        raise InputError(
            f"Data set '{name}' cannot be read from '{root}': {error} "
            "download=True (--download) gets it, root= (--root) says where it is."
        ) from error
    assert isinstance(found, Dataset)
    return found


def labels_of(dataset: Any) -> list[int]:
    """The labels of a data set, without reading its images where it knows them."""
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
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    try:
        if root.is_dir():
            return ReaderImageFolder(str(root))
        # A table of contents kept beside the file would be a pickle.
        reader = ReaderImageInTar(str(root), cache_tarfiles=False, cache_tarinfo=False)
    except RuntimeError as error:
        raise InputError(f"'{root}' has no images in class folders: {error}") from error
    except Exception as error:
        raise InputError(f"'{root}' cannot be read: {error}") from error
    if not len(reader):
        raise InputError(f"'{root}' has no images in class folders.")
    return reader
