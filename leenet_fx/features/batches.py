"""Checked batches from any loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from leenet_fx.errors import InputError

IMAGE_KEYS = ("pixel_values", "image", "images")
"""Keys of the images in batches that are dictionaries, as Hugging Face's data sets yield them."""

LABEL_KEYS = ("labels", "label")
"""Keys of the labels in batches that are dictionaries."""


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


def check_new_pass(loader: object, before: object, now: object, name: str) -> None:
    """Check that a second pass over a loader begins anew.

    Args:
        loader: from the caller.
        before: its iterator of an earlier pass.
        now: its iterator of this pass.
        name: of the argument, for messages.

    Raises:
        InputError: both passes share an iterator. A DataLoader with persistent workers may do so.
    """
    if now is before and not isinstance(loader, DataLoader):
        raise InputError(
            f"{name} gives the same iterator again, so it can be read only once; pass a DataLoader "
            "or a list."
        )


def batches(
    loader: object, name: str, num_classes: int, device: torch.device, *, labelled: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, …) and int64 labels (B,) on a device.

    A batch is (images, labels, …), or a dictionary with one of `IMAGE_KEYS` and one of
    `LABEL_KEYS`; labels are class indices of any integer type, (B,) or (B, 1).

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
    return checked(check_loader(loader, name), name, num_classes, device, labelled=labelled)


def checked(
    read: Iterable[Any],
    name: str,
    num_classes: int,
    device: torch.device,
    *,
    labelled: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one pass as `batches` does, from batches that are being read, which may be an iterator.

    Args:
        read: batches of a loader.
        name: of the argument that is the loader, for messages.
        num_classes: labels lie in 0..num_classes−1.
        device: of the batches.
        labelled: whether labels are needed.

    Raises:
        InputError: as `batches`.
    """
    empty = True
    for batch in read:
        images, labels = split_batch(batch, name, labelled=labelled)
        if not len(images):
            continue
        if labelled:
            _check_range(labels, name, num_classes)
        empty = False
        yield _on_device(images, device), _on_device(labels, device).to(torch.int64)
    if empty:
        raise InputError(f"{name} is empty: it yields no images.")


def split_batch(batch: object, name: str, *, labelled: bool = True) -> tuple[Tensor, Tensor]:
    """Return the images (B, …) and labels (B,) of a batch, on their own device.

    Args:
        batch: from a loader.
        name: of the argument that is the loader, for messages.
        labelled: whether labels are needed; if not, they are −1.

    Raises:
        InputError: images or labels are absent, or not tensors, or labels are not one whole number
            for each image.
    """
    images, labels = _parts(batch, name)
    if not isinstance(images, Tensor):
        if labelled:
            raise InputError(
                f"{name} must yield tensors (images, labels), got ({_describe(images)}, "
                f"{_describe(labels)})."
            )
        raise InputError(f"{name} must yield images, but yields {_describe(batch)}.")
    if images.ndim == 0:
        raise InputError(f"{name} must yield batches of images, got a single number.")
    if not labelled:
        return images, torch.full((len(images),), -1)
    if labels is None:
        raise InputError(
            f"{name} must yield (images, labels) tuples, but yields {_describe(batch)}: labels are "
            "absent, and needed here."
        )
    if isinstance(labels, int) or (isinstance(labels, Tensor) and labels.ndim == 0):
        raise InputError(
            f"{name} yields single samples, {_describe(images)} with one label: give its "
            "DataLoader a batch_size."
        )
    if not isinstance(labels, Tensor):
        raise InputError(
            f"{name} must yield tensors (images, labels), got ({_describe(images)}, "
            f"{_describe(labels)})."
        )
    return images, _class_indices(labels, len(images), name)


def count_batches(loader: object) -> int | None:
    """Return the number of batches of an epoch, or None if the loader has no length."""
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        # A DataLoader has a length only if its data set has one.
        return None


def count_images(loader: object) -> int | None:
    """Return the number of images of an epoch, or None if it is unknown."""
    dataset = getattr(loader, "dataset", None)
    try:
        return len(dataset) if isinstance(dataset, Sized) else None
    except TypeError:
        return None


def _parts(batch: object, name: str) -> tuple[object, object]:
    """Return images and labels as the batch holds them; labels are None if they are absent."""
    if isinstance(batch, Mapping):
        found = [next((k for k in keys if k in batch), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if found[0] is None:
            raise InputError(
                f"{name} yields dictionaries with the keys {', '.join(map(str, batch))}; expected "
                f"images under {' or '.join(IMAGE_KEYS)} and labels under "
                f"{' or '.join(LABEL_KEYS)}, or (images, labels) tuples."
            )
        return batch[found[0]], None if found[1] is None else batch[found[1]]
    if isinstance(batch, (tuple, list)):
        return (*batch, None, None)[:2]
    return batch, None


def _class_indices(labels: Tensor, count: int, name: str) -> Tensor:
    """Return labels (B,) or (B, 1) as (B,), if they are one whole number for each image."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim == 2 and len(labels) == count:
        raise InputError(
            f"{name} must yield one whole-number label for each image, got labels of "
            f"{labels.dtype}, shape {tuple(labels.shape)}: pass class indices, such as "
            "labels.argmax(1); mixtures of labels (mixup, cutmix) are not supported."
        )
    whole = not (labels.is_floating_point() or labels.is_complex())
    if labels.ndim != 1 or not whole or len(labels) != count:
        raise InputError(
            f"{name} must yield one whole-number label for each image: got labels of "
            f"{labels.dtype}, shape {tuple(labels.shape)}, for {count} images."
        )
    return labels


def _on_device(values: Tensor, device: torch.device) -> Tensor:
    values = values.to(device, non_blocking=True)
    # Autograd cannot save tensors that a loader made in inference mode.
    if values.is_inference() and not torch.is_inference_mode_enabled():
        return values.clone()
    return values


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
