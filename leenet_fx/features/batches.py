"""Checked batches from whatever loader a user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError


def check_loader(loader: object, name: str) -> Iterable[Any]:
    """Raises InputError unless `loader` can be read once for each epoch."""
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
    """Yields (images, labels) on `device`.

    Args:
        loader: what a user gave.
        name: of the argument, for messages.
        num_classes: labels lie in 0..num_classes−1.
        device: where tensors go.
        labelled: whether labels are needed; if not, batches may be images alone, and labels −1.

    Raises:
        InputError: the loader is empty, labels are absent, not whole numbers, not one for each
            image, or outside 0..num_classes−1.
    """
    empty = True
    for batch in check_loader(loader, name):
        if not labelled:
            images = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
            if not isinstance(images, Tensor):
                raise InputError(f"{name} must yield images, but yields {_describe(batch)}.")
            if len(images):
                empty = False
                nothing = torch.full((len(images),), -1, device=device)
                yield images.to(device, non_blocking=True), nothing
            continue
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
        if len(labels) == 0:
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{name} has label {high if high >= num_classes else low}, but the head has "
                f"{num_classes} classes (0..{num_classes - 1}): attach with num_classes=… or "
                "correct the labels."
            )
        empty = False
        yield images.to(device, non_blocking=True), labels.to(device, torch.int64)
    if empty:
        raise InputError(f"{name} is empty: it yields no images.")


def count_batches(loader: object) -> int | None:
    """Number of batches of a pass; None where the loader does not know it."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        # A DataLoader has a length only if its data set has one.
        return None


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
