"""Labelled images in folders, tar files and tensors."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Subset

from leenet_fx.data.decoding import to_eight_bits
from leenet_fx.data.folders import list_folder
from leenet_fx.data.listing import LISTED, label_files, listed, unlabelled_files
from leenet_fx.data.tars import list_tar
from leenet_fx.errors import InputError

logger = logging.getLogger("leenet_fx")

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Values of the EXIF orientation that exchange height and width."""


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """Labelled images of a folder, or of a tar file, with one folder per class.

    Attributes:
        root: the folder or file.
        classes: names of the classes, in the order of their labels.
        targets: label of each image; -1 if it has none.
        exif: whether images are turned as their EXIF orientation says.
    """

    def __init__(
        self,
        root: Path,
        *,
        classes: Sequence[str] | None = None,
        exif: bool = False,
        unlabelled: bool = False,
    ) -> None:
        """List the images; none is read.

        Args:
            root: the folder or file.
            classes: names of the classes in the order of their labels; None sorts them.
            exif: whether to turn images as their EXIF orientation says.
            unlabelled: whether images without any class folders are accepted.

        Raises:
            InputError: as `label_files` raises.
        """
        self.root = root
        self.exif = exif
        listing = list_folder(root) if root.is_dir() else list_tar(root)
        flat = unlabelled_files(root, listing) if unlabelled else None
        labelled = flat or label_files(root, listing, classes)
        self.classes = labelled.classes
        self.targets = labelled.targets
        self._files = labelled.files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Read an image, in mode "L" or "RGB".

        Raises:
            InputError: it cannot be read; the message lists all images that cannot.
        """
        try:
            image = self._read(index)
        except Exception as error:
            raise InputError(self._describe_unreadable(index, error)) from error
        return image, self.targets[index]

    @property
    def names(self) -> list[str]:
        """Paths of the images relative to the root."""
        return [file.name for file in self._files]

    @property
    def identities(self) -> dict[Hashable, str]:
        """Names of the images by what identifies the stored file."""
        return {file.identity: file.name for file in self._files}

    def size_of(self, index: int) -> tuple[int, int]:
        """Return width and height of an image from its header.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with self._open(index) as image:
                width, height = image.size
                turned = self.exif and image.getexif().get(_ORIENTATION) in _TURNED
        except Exception as error:
            raise InputError(self._describe_unreadable(index, error)) from error
        return (height, width) if turned else (width, height)

    def remove_unreadable(self) -> list[str]:
        """Remove the images that cannot be read, and return their names."""
        unreadable = set(self._unreadable())
        names = [self._files[index].name for index in sorted(unreadable)]
        kept = [index for index in range(len(self)) if index not in unreadable]
        self._files = [self._files[index] for index in kept]
        self.targets = [self.targets[index] for index in kept]
        return names

    def _read(self, index: int) -> Image.Image:
        with self._open(index) as image:
            image.load()
            return to_eight_bits(ImageOps.exif_transpose(image) if self.exif else image)

    def _open(self, index: int) -> Image.Image:
        location = self._files[index].location
        if self.root.is_dir():
            return Image.open(location)
        # The tar file is opened for each image, so that worker processes share no file position.
        with self.root.open("rb") as tar:
            tar.seek(location.offset)
            return Image.open(io.BytesIO(tar.read(location.size)))

    def _unreadable(self) -> list[int]:
        unreadable = []
        for index in range(len(self)):
            try:
                self._read(index)
            except Exception:
                unreadable.append(index)
        return unreadable

    def _describe_unreadable(self, index: int, error: Exception) -> str:
        unreadable = sorted({*self._unreadable(), index})
        names = listed([self._files[one].name for one in unreadable])
        return (
            f"{len(unreadable)} of {len(self)} images in '{self.root}' cannot be read: "
            f"{names} ({self._files[index].name}: {error}). Repair them, or skip them with "
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

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        """Wrap tensors.

        Args:
            images: (n, 1, H, W), values in 0..1.
            labels: (n,) class indices.
            classes: names of the classes, in the order of their labels.
        """
        self.images = images
        self.classes = tuple(classes)
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        grey = (self.images[index, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(grey.numpy()), self.targets[index]


def open_files(
    root: Path,
    skip_bad: bool = False,
    *,
    classes: Sequence[str] | None = None,
    exif: bool = False,
    unlabelled: bool = False,
) -> ImageFiles:
    """Open a folder or a tar file.

    Args:
        root: the folder or file.
        skip_bad: whether to skip images that cannot be read, with a warning.
        classes: names of the classes in the order of their labels; None sorts them.
        exif: whether to turn images as their EXIF orientation says.
        unlabelled: whether images without any class folders are accepted.

    Raises:
        InputError: it is missing, or as `label_files` raises.
    """
    if not root.exists():
        raise InputError(f"No folder or file '{root}'.")
    if root.is_file() and root.suffix.lower() != ".tar":
        raise InputError(
            f"'{root}' is neither a folder nor a .tar file; unpack or decompress it first."
        )
    files = ImageFiles(root, classes=classes, exif=exif, unlabelled=unlabelled)
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
        if empty:
            raise InputError(f"Class folder '{root / empty[0]}' has no images that can be read.")
    return files
