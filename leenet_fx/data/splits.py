"""Images in four splits: train, val, calibration, test.

Exits are trained on `train`, with early stopping on `val`; gates and thresholds are fitted on
`calibration`; results are measured on `test`, which nothing is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leenet_fx.data.class_names import class_names_of
from leenet_fx.data.images import (
    ImageFiles,
    LabelledSubset,
    TensorImages,
    TransformedImages,
    open_files,
)
from leenet_fx.data.listing import SPLIT_NAMES, names_a_split
from leenet_fx.data.torchvision_data import check_labels, labels_of, open_torchvision
from leenet_fx.errors import InputError

NAMES = ("train", "val", "calibration", "test")


@dataclass(frozen=True)
class Data:
    """Labelled images in four splits; each sample is (PIL image, label).

    Attributes:
        name: path or name of the data set.
        classes: names of the classes, in the order of their labels; for a data set without names
            the labels themselves.
        splits: "train", "val", "calibration" and "test".
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, LabelledSubset]

    def loader(
        self,
        split: str,
        transform: Callable[[Any], Tensor],
        batch_size: int,
        *,
        shuffle: Any = None,
        workers: int = 0,
    ) -> DataLoader[Any]:
        """Return a loader of batches (images (B, C, H, W), labels (B,)) of a split.

        Args:
            split: "train", "val", "calibration" or "test".
            transform: PIL image → tensor (C, H, W).
            batch_size: number of images per batch.
            shuffle: a torch.Generator that the order is drawn from; None keeps the order.
            workers: number of processes that read images.
        """
        return DataLoader(
            TransformedImages(self.splits[split], transform),
            batch_size=batch_size,
            shuffle=shuffle is not None,
            generator=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def image_size(self) -> tuple[int, int] | None:
        """Return the height and width that all images have; None if they differ."""
        found: tuple[int, int] | None = None
        for split in self.splits.values():
            for index in range(len(split)):
                size = image_size(split, index)
                if found not in (None, size):
                    return None
                found = size
        return found


def open_data(
    where: str | Path,
    *,
    root: str | Path = "data",
    download: bool = False,
    skip_bad: bool = False,
    classes: Sequence[str] | None = None,
    exif: bool = False,
) -> Data:
    """Open images and split them.

    Args:
        where: a folder or a tar file with one folder per class; a folder that contains `train` and
            `val` or `test` (folders or tar files, in any case); the name of one of torchvision's
            data sets, such as "CIFAR10"; or "digits", scikit-learn's digits on a canvas.
        root: folder of torchvision's data sets.
        download: whether torchvision may download.
        skip_bad: whether to skip images that cannot be read, with a warning.
        classes: names of all class folders in the order of their labels; None sorts them by code
            points, as torchvision's `ImageFolder` does.
        exif: whether to turn the images of files as their EXIF orientation says; by default they
            are not turned, as torchvision and timm do not turn them when they train a network.

    Images in folders of a class folder, at any depth, belong to the class. Names that start with a
    dot are ignored; files that Pillow does not read are skipped, with a warning that counts them. A
    file with several names or links is read once.

    Each class is split in the order of its files. The first 90 % of the folder `train` are the
    split "train" and the rest is "val"; the first half of the folder `test` (or `val`) is
    "calibration" and the rest is "test". With all three folders, `train` is "train" and `val` is
    "val". A single folder is split into 70, 10, 10 and 10 %.

    Raises:
        InputError: nothing is there, images lie outside class folders, there is one class only, a
            class is empty, classes differ between parts, a file is in two classes or parts, a class
            has too few images for all splits, or `classes` are not the names of the folders.
        UnknownNameError: neither a path nor the name of a data set.
    """
    path = Path(where)
    by_name = not path.exists() and path.name == str(where) and not path.suffix
    if str(where) == "digits" or by_name:
        if classes is not None or exif:
            raise InputError(
                f"'{where}' has an order of classes and no EXIF orientation: classes= (--classes) "
                "and exif= (--exif-orientation) are for folders and tar files."
            )
        return _digits() if str(where) == "digits" else _torchvision(str(where), root, download)
    paths = _parts(path) if path.is_dir() else {}
    if paths:
        return _open_parts(path, paths, skip_bad, classes, exif)
    files = open_files(path, skip_bad, classes=classes, exif=exif)
    pieces = split_each_class(files.targets, (0.7, 0.1, 0.1, 0.1), str(path))
    splits = {
        name: LabelledSubset(files, piece, files.targets)
        for name, piece in zip(NAMES, pieces, strict=True)
    }
    return Data(str(path), files.classes, splits)


def split_each_class(
    targets: Sequence[int], shares: Sequence[float], name: str = "the data"
) -> list[list[int]]:
    """Split indices so that each class is divided by `shares`, in its order.

    Args:
        targets: label of each image.
        shares: share of each part; their sum is 1.
        name: name of the data set, for the error message.

    Raises:
        InputError: a class has too few images for all parts.
    """
    indices_of: dict[int, list[int]] = {}
    for index, label in enumerate(targets):
        indices_of.setdefault(label, []).append(index)
    parts: list[list[int]] = [[] for _ in shares]
    for label, indices in sorted(indices_of.items()):
        ends = [round(share * len(indices)) for share in accumulate(shares)]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            if end <= start:
                raise InputError(
                    f"Class {label} of '{name}' has {len(indices)} images, too few for parts of "
                    f"{', '.join(f'{share:.0%}' for share in shares)}."
                )
            part += indices[start:end]
    return [sorted(part) for part in parts]


def _open_parts(
    path: Path,
    paths: dict[str, Path],
    skip_bad: bool,
    classes: Sequence[str] | None,
    exif: bool,
) -> Data:
    """Open the folders or tar files `train` and `val` or `test`."""
    parts = {
        part: open_files(at, skip_bad, classes=classes, exif=exif) for part, at in paths.items()
    }
    names = parts["train"].classes
    for part, files in parts.items():
        _check_classes(path, part, names, files.classes)
    _check_disjoint(path, parts)
    val = parts.get("val") if "test" in parts else None
    return _split(str(path), names, parts["train"], val, parts.get("test", parts.get("val")))


def _torchvision(name: str, root: str | Path, download: bool) -> Data:
    """Open one of torchvision's data sets."""
    train, test = (open_torchvision(name, Path(root), part, download) for part in (True, False))
    labels = labels_of(train, name)
    names = class_names_of(train) or tuple(
        str(label) for label in range(max(labels, default=0) + 1)
    )
    for part in (labels, labels_of(test, name)):
        check_labels(part, len(names), name)
    return _split(name, names, train, None, test)


def _split(
    name: str,
    classes: tuple[str, ...],
    train: Dataset[Any],
    val: Dataset[Any] | None,
    test: Dataset[Any] | None,
) -> Data:
    """Split `test` into two halves, and `train` into "train" and "val" if there is no `val`."""
    assert test is not None
    train_labels, test_labels = labels_of(train, name), labels_of(test, name)
    if val is None:
        first, rest = split_each_class(train_labels, (0.9, 0.1), name)
        splits = {
            "train": LabelledSubset(train, first, train_labels),
            "val": LabelledSubset(train, rest, train_labels),
        }
    else:
        val_labels = labels_of(val, name)
        splits = {
            "train": LabelledSubset(train, range(len(train_labels)), train_labels),
            "val": LabelledSubset(val, range(len(val_labels)), val_labels),
        }
    halves = split_each_class(test_labels, (0.5, 0.5), name)
    for split, half in zip(("calibration", "test"), halves, strict=True):
        splits[split] = LabelledSubset(test, half, test_labels)
    return Data(name, classes, splits)


def _digits() -> Data:
    from leenet_fx.data.digits import load_digits

    splits = {}
    classes = tuple(map(str, range(10)))
    for name, digits in load_digits(seed=0).items():
        images = TensorImages(digits.images, digits.labels, classes)
        splits[name] = LabelledSubset(images, range(len(images)), images.targets)
    ordered = {name: splits[name] for name in NAMES}
    return Data("digits", classes, ordered)


def _parts(path: Path) -> dict[str, Path]:
    """Return the folders or tar files of the parts train, val and test; empty if there are none.

    Raises:
        InputError: two have the same part, or a part is missing.
    """
    found: dict[str, Path] = {}
    for candidate in sorted(path.iterdir()):
        is_tar = candidate.suffix.lower() == ".tar" and candidate.is_file()
        part = names_a_split(candidate.stem if is_tar else candidate.name)
        # A folder without folders in it is not a part but a class of this name.
        if part is None or not (is_tar or _has_folders(candidate)):
            continue
        if part in found:
            raise InputError(
                f"'{found[part]}' and '{candidate}' both are the {part} part: remove or rename one."
            )
        found[part] = candidate
    if "train" in found and len(found) == 1:
        raise InputError(f"'{path}' contains train, but neither val nor test with class folders.")
    if found and "train" not in found:
        raise InputError(f"'{path}' contains {' and '.join(found)}, but not train.")
    return {part: found[part] for part in SPLIT_NAMES if part in found}


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(
        inner.is_dir() for inner in path.iterdir() if not inner.name.startswith(".")
    )


def image_size(split: LabelledSubset, index: int) -> tuple[int, int]:
    """Return height and width of an image, from the header of its file if it has one."""
    if isinstance(split.dataset, ImageFiles):
        width, height = split.dataset.size_of(split.indices[index])
    else:
        width, height = split[index][0].size
    return height, width


def _check_disjoint(path: Path, parts: dict[str, ImageFiles]) -> None:
    """Raise InputError if a file is in two parts."""
    for (part, files), (other, others) in combinations(parts.items(), 2):
        names, other_names = files.identities, others.identities
        both = next((one for one in names if one in other_names), None)
        if both is not None:
            raise InputError(
                f"'{path}': '{names[both]}' of {part} and '{other_names[both]}' of {other} are the "
                "same file: remove one of them, or results are measured on images that were "
                "fitted."
            )


def _check_classes(path: Path, part: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise InputError if a part has other classes than train."""
    if list(expected) != list(found):
        different = sorted(set(expected) ^ set(found))
        raise InputError(
            f"'{path}': train has {len(expected)} classes, {part} has {len(found)}; "
            f"'{different[0]}' is not in both."
        )
