"""Checks of images and exit indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.surgery.spec import ExitSpec

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def images_by_name(spec: ExitSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the images among arguments by name.

    Raises:
        InputError: any other argument, or the images twice.
    """
    names = [name for name in (spec.images_name, "images") if name is not None]
    given = next((name for name in names if name in kwargs), None)
    others = [name for name in kwargs if name != given]
    if args or given is None or others:
        raise InputError(
            f"A network with exits takes one batch of images, {names[0]}=; got "
            f"{len(args)} by position and {', '.join(kwargs)}. Other arguments of the original are "
            "fixed by attach(concrete_args={…})."
        )
    return kwargs[given]


def check_shape(images: Any, spec: ExitSpec) -> None:
    """Raise InputError unless `images` is a batch (B, …) of images that fit the network."""
    expected = spec.image_shape
    if not isinstance(images, Tensor):
        raise InputError(f"Expected a batch of images as a tensor, got {type(images).__name__}.")
    if images.ndim != len(expected) + 1:
        axes = "(B, C, H, W)" if len(expected) == 3 else f"{len(expected) + 1} axes"
        raise InputError(f"Expected images of {axes}, got shape {tuple(images.shape)}.")
    if images.shape[1] != expected[0]:
        raise InputError(
            f"Expected images with {expected[0]} channels, got {images.shape[1]} "
            f"(shape {tuple(images.shape)})."
        )
    if spec.tracer == "export" and tuple(images.shape[1:]) != expected:
        raise InputError(
            f"{spec.profile.model} was captured by torch.export for images of {expected}, got "
            f"{tuple(images.shape[1:])}: attach with example_inputs of that size."
        )


def casts_images(images: Tensor) -> bool:
    """Return whether autocast is on, so that images of any floating dtype fit."""
    return not images.is_meta and torch.is_autocast_enabled(images.device.type)


def check_dtype(images: Tensor, dtype: torch.dtype | None) -> None:
    """Raise InputError for images of another dtype than that of the weights, if there are any."""
    if dtype is not None and images.dtype != dtype:
        raise InputError(f"Expected images of dtype {dtype}, got {images.dtype}.")


def as_exit_indices(exit_index: Tensor | int, images: Tensor, num_exits: int) -> Tensor:
    """Return exits (B,) on the device of the images.

    Args:
        exit_index: (B,) integers in 0..N, or one for all images.
        images: (B, …).
        num_exits: N.

    Raises:
        InputError: not integers, another number of them, or out of range.
    """
    try:
        indices = torch.as_tensor(exit_index, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"exit_index must be whole numbers, got {exit_index!r}.") from error
    if indices.ndim == 0:
        indices = indices.expand(images.shape[0])
    if indices.shape != (images.shape[0],) or indices.dtype not in _INTEGERS:
        raise InputError(
            f"exit_index needs one whole number for each of {images.shape[0]} images, "
            f"got {indices.dtype} of shape {tuple(indices.shape)}."
        )
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) <= num_exits:
        raise InputError(
            f"exit_index must lie in 0..{num_exits} ({num_exits} is the final classifier), got "
            f"{int(indices.min())}..{int(indices.max())}."
        )
    return indices
