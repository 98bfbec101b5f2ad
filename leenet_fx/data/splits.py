"""The four splits: fit, validate, calibrate, report.

Exits are fitted on `fit` and stopped early on `validate`; gates and thresholds are set on
`calibrate`; figures come from `report`, which nothing else sees.
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
    Pictures,
    Some,
    Transformed,
    labels_of,
    open_files,
    open_torchvision,
)
from leenet_fx.errors import InputError

NAMES = ("fit", "validate", "calibrate", "report")
TRAIN = ("train",)
VALIDATION = ("val", "validation", "valid", "validate")
TEST = ("test",)


@dataclass(frozen=True)
class Data:
    """Labelled images in four splits; each item is (PIL image, label).

    Attributes:
        name: where they come from.
        classes: names of the classes, in the order of their labels.
        splits: "fit", "validate", "calibrate" and "report".
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Some]

    def loader(
        self,
        split: str,
        transform: Callable[[Any], Tensor],
        batch_size: int,
        *,
        shuffle: Any = None,
        workers: int = 0,
    ) -> DataLoader[Any]:
        """Batches (images (B, C, H, W), labels (B,)) of a split.

        Args:
            split: one of the four.
            transform: PIL image → tensor (C, H, W).
            batch_size: images a batch.
            shuffle: a torch.Generator to draw the order from; None keeps the order.
            workers: processes that read images.
        """
        return DataLoader(
            Transformed(self.splits[split], transform),
            batch_size=batch_size,
            shuffle=shuffle is not None,
            generator=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


def open_data(
    where: str | Path, *, root: str | Path = "data", download: bool = False, skip_bad: bool = False
) -> Data:
    """Opens images and splits them.

    Args:
        where: a folder or a tar file with one folder a class; a folder that holds `train` and
            `val` or `test` (folders or tar files); the name of one of torchvision's data sets,
            such as "CIFAR10"; or "digits", scikit-learn's digits on a canvas.
        root: where torchvision's data sets are kept.
        download: whether torchvision may download.
        skip_bad: whether to leave out images that cannot be read, with a warning.

    In the order of the files within each class: of `train` the first 90 % are "fit" and the rest
    "validate", of `test` (or `val`) the first half is "calibrate" and the rest "report"; where
    there are all three, `train` is "fit" and `val` is "validate". One folder without such parts is
    split 70, 10, 10 and 10 %.

    Raises:
        InputError: nothing is there, a class is empty, classes differ between parts, or a class
            has too few images to be in every split.
        UnknownNameError: neither a path nor the name of a data set.
    """
    if str(where) == "digits":
        return _digits()
    path = Path(where)
    if not path.exists() and path.name == str(where) and not path.suffix:
        parts = [
            open_torchvision(str(where), Path(root), train, download) for train in (True, False)
        ]
        classes = tuple(str(name) for name in getattr(parts[0], "classes", ()))
        return _split(str(where), classes, parts[0], None, parts[1])
    found = {
        part: _find(path, names)
        for part, names in (("train", TRAIN), ("val", VALIDATION), ("test", TEST))
    }
    if path.is_dir() and found["train"] is not None:
        files = {part: open_files(at, skip_bad) for part, at in found.items() if at is not None}
        if len(files) == 1:
            raise InputError(f"'{path}' holds train, but neither val nor test beside it.")
        for part, one in files.items():
            _check_classes(path, part, files["train"].classes, one.classes)
        second = files.get("test", files.get("val"))
        validation = files.get("val") if "test" in files else None
        return _split(str(path), tuple(files["train"].classes), files["train"], validation, second)
    whole = open_files(path, skip_bad)
    pieces = split_each_class(whole.targets, (0.7, 0.1, 0.1, 0.1), str(path))
    splits = {
        name: Some(whole, piece, whole.targets) for name, piece in zip(NAMES, pieces, strict=True)
    }
    return Data(str(path), tuple(whole.classes), splits)


def split_each_class(
    targets: Sequence[int], shares: Sequence[float], name: str = "the data"
) -> list[list[int]]:
    """Splits indices so that each class is split by `shares`, in the order it has.

    Raises:
        InputError: a class has too few images to be in every part.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(targets):
        members.setdefault(label, []).append(index)
    parts: list[list[int]] = [[] for _ in shares]
    for label, indices in sorted(members.items()):
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
    validation: Dataset[Any] | None,
    test: Dataset[Any] | None,
) -> Data:
    labels = labels_of(train)
    if validation is None:
        first, second = split_each_class(labels, (0.9, 0.1), name)
        splits = {"fit": Some(train, first, labels), "validate": Some(train, second, labels)}
    else:
        found = labels_of(validation)
        splits = {
            "fit": Some(train, range(len(labels)), labels),
            "validate": Some(validation, range(len(found)), found),
        }
    assert test is not None
    found = labels_of(test)
    for part, piece in zip(
        ("calibrate", "report"), split_each_class(found, (0.5, 0.5), name), strict=True
    ):
        splits[part] = Some(test, piece, found)
    known = classes or tuple(str(label) for label in range(max(labels) + 1))
    return Data(name, known, splits)


def _digits() -> Data:
    from leenet_fx.data.digits import load_digits

    parts = load_digits(seed=0)
    named = {"fit": "train", "validate": "validate", "calibrate": "gates", "report": "test"}
    splits = {}
    for name, part in named.items():
        pictures = Pictures(parts[part].images, parts[part].labels)
        splits[name] = Some(pictures, range(len(pictures)), pictures.targets)
    return Data("digits", tuple(map(str, range(10))), splits)


def _find(path: Path, names: Sequence[str]) -> Path | None:
    for name in names:
        for candidate in (path / name, path / f"{name}.tar"):
            if candidate.exists():
                return candidate
    return None


def _check_classes(path: Path, part: str, expected: Sequence[str], found: Sequence[str]) -> None:
    if list(expected) != list(found):
        odd = sorted(set(expected) ^ set(found))
        raise InputError(
            f"'{path}': train has {len(expected)} classes, {part} has {len(found)}; "
            f"'{odd[0]}' is not in both."
        )
