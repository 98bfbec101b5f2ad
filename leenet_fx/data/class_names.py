"""Names of the classes: of data sets, of a file, and whether they are those of a network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from leenet_fx.data.images import TransformedImages
from leenet_fx.errors import InputError
from leenet_fx.surgery.module import EarlyExitModule

Names = tuple[str, ...]


def class_names_of(source: object) -> Names | None:
    """Return the names of the classes in the order of the labels; None if they are not known.

    Args:
        source: a data set with an attribute `classes`, as `Data` and torchvision's data sets have
            it; a subset or concatenation of such data sets; a loader of one; a feature cache of
            such a loader. Names of a data set with a `target_transform` are not known, since it
            changes the labels.

    Raises:
        InputError: data sets that are concatenated have different classes.
    """
    if getattr(source, "target_transform", None) is not None:
        return None
    names = _as_names(getattr(source, "classes", None))
    if names is not None:
        return names
    if isinstance(source, ConcatDataset):
        parts = [class_names_of(part) for part in source.datasets]
        known = [part for part in parts if part is not None]
        for part in known[1:]:
            compare_class_names(known[0], part, "the first data set", "one joined to it")
        return known[0] if len(known) == len(parts) else None
    inner: Any = None
    if isinstance(source, (Subset, TransformedImages)):
        inner = source.dataset
    elif not isinstance(source, Dataset):
        # A feature cache has the loader that it was made from, a loader has its data set.
        inner = getattr(source, "loader", getattr(source, "dataset", None))
    return None if inner is None or callable(inner) else class_names_of(inner)


def check_class_names(ee: EarlyExitModule, *named: tuple[str, object]) -> Names | None:
    """Check that data has the classes of a network, in its order.

    Where the names are not known, of the network or of the data, they cannot be compared.

    Args:
        ee: the network.
        named: data by the name of the argument, for messages; None is skipped.

    Returns:
        The names: those of the network, or else those of the data; None if neither are known.

    Raises:
        InputError: names, order or number of the classes differ; the message has the first
            difference.
    """
    expected, of = ee.spec.class_names, "the network"
    count = ee.spec.num_classes
    for name, source in named:
        found = class_names_of(source)
        if found is None:
            continue
        if expected is None:
            if len(found) != count:
                raise InputError(
                    f"{name} has {len(found)} classes, the final classifier {count}: attach with "
                    f"num_classes={len(found)}, or pass images of the network's classes."
                )
            expected, of = found, name
        compare_class_names(expected, found, of, name)
    return expected


def compare_class_names(expected: Names, found: Names, of: str, name: str) -> None:
    """Check that two lists of class names are equal.

    Args:
        expected: names.
        found: names to compare with them.
        of: what has the expected names, for messages.
        name: what has the found names.

    Raises:
        InputError: they differ; the message has the first difference.
    """
    if expected == found:
        return
    label, pair = next(
        (label, pair)
        for label, pair in enumerate(zip_longest(expected, found))
        if pair[0] != pair[1]
    )
    if sorted(expected) == sorted(found):
        advice = (
            f"the names are the same, in another order: give {of}'s with open_data(classes=…) "
            "(--classes)"
        )
    else:
        advice = "pass images of the same classes"
        if of == "the network":
            advice += ", or attach and fit a network for these"
    raise InputError(
        f"Class {label} is {_quoted(pair[0])} in {of} and {_quoted(pair[1])} in {name}: {advice}."
    )


def read_class_names(path: Path) -> Names:
    """Return the names of a text file, one a line in the order of the labels.

    Args:
        path: of a file in UTF-8; empty lines are ignored.

    Raises:
        InputError: the file cannot be read, or has no names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"Class names '{path}' cannot be read: {error}") from error
    names = tuple(line for line in text.splitlines() if line.strip())
    if not names:
        raise InputError(f"'{path}' has no class names; expected one a line.")
    return names


def _as_names(values: object) -> Names | None:
    """Return names as texts; a class with several names, as in torchvision's ImageNet, has one."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
        return None
    names = [", ".join(v) if isinstance(v, tuple) and _all_texts(v) else v for v in values]
    return tuple(names) if _all_texts(names) else None


def _all_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _quoted(name: str | None) -> str:
    return "absent" if name is None else f"'{name}'"
