"""torchvision's data sets of labelled images."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name


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


def labels_of(dataset: Any, name: str) -> list[int]:
    """Return the labels of a data set, without reading images if it stores them.

    Args:
        dataset: the data set.
        name: for messages.

    Raises:
        InputError: a label is no whole number.
    """
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            break
    else:
        values = (dataset[index][1] for index in range(len(dataset)))
    labels = []
    for value in values:
        try:
            labels.append(operator.index(value))
        except TypeError:
            raise InputError(
                f"Data set '{name}' has the label {value!r}; expected one whole number for each "
                "image."
            ) from None
    return labels


def check_labels(labels: Sequence[int], num_classes: int, name: str) -> None:
    """Check that the labels are 0..C−1, each of which occurs.

    Args:
        labels: of all images.
        num_classes: C.
        name: of the data set, for messages.

    Raises:
        InputError: a label is out of range or missing.
    """
    present = set(labels)
    outside = sorted(present - set(range(num_classes)))
    missing = sorted(set(range(num_classes)) - present)
    if outside or missing:
        found = f"label {outside[0]}" if outside else f"no image of label {missing[0]}"
        raise InputError(
            f"Data set '{name}' has {found}; expected every label from 0 to {num_classes - 1}, one "
            f"for each of its {num_classes} classes: renumber its labels."
        )


def _parameters(build: Any) -> list[str]:
    import inspect

    try:
        return list(inspect.signature(build).parameters)
    except (TypeError, ValueError):
        return []
