"""Checked batches from any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError


def check_loader(loader: object, name: str) -> Iterable[Any]:
    """Return the loader if it can be read once for each epoch.

    Args:
        loader: from the caller.
        name: of the argument, for messages.

    Raises:
        InputError: it is not iterable, or an iterator.
    """
    if not isinstance(loader, Iterable):
        raise InputError(
            f"{name} must yield (images, labels) batches, got {type(loader).__name__}."
        )
    if isinstance(loader, Iterator):
        raise InputError(
            f"{name} is an iterator and can be read only once; pass a DataLoader or a list."
        )
    return loader


def batches(
    loader: object, name: str, num_classes: int, device: torch.device, *, labelled: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, …) and int64 labels (B,) on a device.

    Args:
        loader: from the caller.
        name: of the argument, for messages.
        num_classes: labels lie in 0..num_classes−1.
        device: of the batches.
        labelled: whether labels are needed; if not, batches may be images alone, and labels are −1.

    Raises:
        InputError: the loader is empty, labels are absent, not integers, not one for each image,
            or outside 0..num_classes−1.
    """
    empty = True
    for batch in check_loader(loader, name):
        images, labels = (_labelled if labelled else _unlabelled)(batch, name)
        if not len(images):
            continue
        if labelled:
            _check_range(labels, name, num_classes)
        empty = False
        yield images.to(device, non_blocking=True), labels.to(device, torch.int64)
    if empty:
        raise InputError(f"{name} is empty: it yields no images.")


def count_batches(loader: object) -> int | None:
    """Return the number of batches of an epoch, or None if the loader has no length."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        # A DataLoader has a length only if its data set has one.
        return None


def _unlabelled(batch: object, name: str) -> tuple[Tensor, Tensor]:
    """Return the images of a batch, and labels of −1."""
    images = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise InputError(f"{name} must yield images, but yields {_describe(batch)}.")
    return images, torch.full((len(images),), -1)


def _labelled(batch: object, name: str) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError(
            f"{name} must yield (images, labels) tuples, but yields {_describe(batch)}"
            + (": labels are absent." if not isinstance(batch, dict) else ".")
        )
    images, labels = batch[0], batch[1]
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise InputError(
            f"{name} must yield tensors (images, labels), got ({_describe(images)}, "
            f"{_describe(labels)})."
        )
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(images):
        raise InputError(
            f"{name} must yield one whole-number label for each image: got labels of "
            f"{labels.dtype}, shape {tuple(labels.shape)}, for {len(images)} images."
        )
    return images, labels


def _check_range(labels: Tensor, name: str, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"{name} has label {high if high >= num_classes else low}, but the final classifier "
            f"has {num_classes} classes (0..{num_classes - 1}): attach with num_classes=… or "
            "correct the labels."
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
