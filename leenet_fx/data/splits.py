"""Images in four splits: train, val, calibration, test.

Exits are trained on `train`, with early stopping on `val`; gates and thresholds are fitted on
`calibration`; results are measured on `test`, which nothing is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leenet_fx.data.images import (
    LabelledSubset,
    TensorImages,
    TransformedImages,
    labels_of,
    open_files,
    open_torchvision,
)
from leenet_fx.errors import InputError

NAMES = ("train", "val", "calibration", "test")

FOLDERS = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "validate"),
    "test": ("test",),
}
"""Names of the folders, or tar files, of each part."""


@dataclass(frozen=True)
class Data:
    """Labelled images in four splits; each sample is (PIL image, label).

    Attributes:
        name: path or name of the data set.
        classes: names of the classes, in the order of their labels.
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


def open_data(
    where: str | Path, *, root: str | Path = "data", download: bool = False, skip_bad: bool = False
) -> Data:
    """Open images and split them.

    Args:
        where: a folder or a tar file with one folder per class; a folder that contains `train` and
            `val` or `test` (folders or tar files); the name of one of torchvision's data sets,
            such as "CIFAR10"; or "digits", scikit-learn's digits on a canvas.
        root: folder of torchvision's data sets.
        download: whether torchvision may download.
        skip_bad: whether to skip images that cannot be read, with a warning.

    Each class is split in the order of its files. The first 90 % of the folder `train` are the
    split "train" and the rest is "val"; the first half of the folder `test` (or `val`) is
    "calibration" and the rest is "test". With all three folders, `train` is "train" and `val` is
    "val". A single folder is split into 70, 10, 10 and 10 %.

    Raises:
        InputError: nothing is there, a class is empty, classes differ between parts, or a class
            has too few images for all splits.
        UnknownNameError: neither a path nor the name of a data set.
    """
    if str(where) == "digits":
        return _digits()
    path = Path(where)
    if not path.exists() and path.name == str(where) and not path.suffix:
        train, test = (
            open_torchvision(str(where), Path(root), is_train, download)
            for is_train in (True, False)
        )
        classes = tuple(str(name) for name in getattr(train, "classes", ()))
        return _split(str(where), classes, train, None, test)
    paths = {part: _find(path, names) for part, names in FOLDERS.items()}
    if path.is_dir() and paths["train"] is not None:
        parts = {part: open_files(at, skip_bad) for part, at in paths.items() if at is not None}
        if len(parts) == 1:
            raise InputError(f"'{path}' contains train, but neither val nor test.")
        classes = tuple(parts["train"].classes)
        for part, files in parts.items():
            _check_classes(path, part, classes, files.classes)
        val = parts.get("val") if "test" in parts else None
        return _split(str(path), classes, parts["train"], val, parts.get("test", parts.get("val")))
    files = open_files(path, skip_bad)
    pieces = split_each_class(files.targets, (0.7, 0.1, 0.1, 0.1), str(path))
    splits = {
        name: LabelledSubset(files, piece, files.targets)
        for name, piece in zip(NAMES, pieces, strict=True)
    }
    return Data(str(path), tuple(files.classes), splits)


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


def _split(
    name: str,
    classes: tuple[str, ...],
    train: Dataset[Any],
    val: Dataset[Any] | None,
    test: Dataset[Any] | None,
) -> Data:
    """Split `test` into two halves, and `train` into "train" and "val" if there is no `val`."""
    assert test is not None
    train_labels, test_labels = labels_of(train), labels_of(test)
    if val is None:
        first, rest = split_each_class(train_labels, (0.9, 0.1), name)
        splits = {
            "train": LabelledSubset(train, first, train_labels),
            "val": LabelledSubset(train, rest, train_labels),
        }
    else:
        val_labels = labels_of(val)
        splits = {
            "train": LabelledSubset(train, range(len(train_labels)), train_labels),
            "val": LabelledSubset(val, range(len(val_labels)), val_labels),
        }
    halves = split_each_class(test_labels, (0.5, 0.5), name)
    for split, half in zip(("calibration", "test"), halves, strict=True):
        splits[split] = LabelledSubset(test, half, test_labels)
    names = classes or tuple(str(label) for label in range(max(train_labels) + 1))
    return Data(name, names, splits)


def _digits() -> Data:
    from leenet_fx.data.digits import load_digits

    splits = {}
    for name, digits in load_digits(seed=0).items():
        images = TensorImages(digits.images, digits.labels)
        splits[name] = LabelledSubset(images, range(len(images)), images.targets)
    ordered = {name: splits[name] for name in NAMES}
    return Data("digits", tuple(map(str, range(10))), ordered)


def _find(path: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder or tar file of one of these names."""
    for name in names:
        for candidate in (path / name, path / f"{name}.tar"):
            if candidate.exists():
                return candidate
    return None


def _check_classes(path: Path, part: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise InputError if a part has other classes than train."""
    if list(expected) != list(found):
        different = sorted(set(expected) ^ set(found))
        raise InputError(
            f"'{path}': train has {len(expected)} classes, {part} has {len(found)}; "
            f"'{different[0]}' is not in both."
        )
