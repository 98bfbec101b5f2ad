"""Tensors in fewer bytes: float16, or uint8 with a range for each sample."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name

Coding: TypeAlias = Literal["unchanged", "float16", "uint8"]
"""How floating-point tensors are sent. "unchanged": as they are. "float16": with a relative error
of at most 2⁻¹¹ (2⁻²⁵ absolutely, below 2⁻¹⁴). "uint8": the 256 values between the least and the
largest of each sample's slice, so with an error of at most (max − min)/510, up to rounding."""

CODINGS: tuple[Coding, ...] = get_args(Coding)


def check_coding(coding: str) -> Coding:
    """Return a coding.

    Raises:
        UnknownNameError: no such coding.
    """
    if coding not in CODINGS:
        raise unknown_name("dtype of sent tensors", coding, CODINGS)
    return coding


def coded_dtype(coding: Coding, dtype: torch.dtype, ndim: int) -> torch.dtype:
    """Return the dtype in which a tensor is sent; its own if that has no more bytes.

    Args:
        coding: of the link.
        dtype: of the tensor.
        ndim: number of its axes; with a single one, a range for each slice would have more bytes.
    """
    if not dtype.is_floating_point:
        return dtype
    if coding == "float16" and dtype.itemsize > 2:
        return torch.float16
    if coding == "uint8" and dtype.itemsize > 1 and ndim > 1:
        return torch.uint8
    return dtype


def shrink(values: Tensor, axis: int, coding: Coding, name: str) -> tuple[Tensor, Tensor | None]:
    """Return a tensor in fewer bytes.

    Args:
        values: a tensor of samples.
        axis: of the samples.
        coding: of the link.
        name: of the tensor, for messages.

    Returns:
        The tensor in `coded_dtype`, and for uint8 the least value and the step of each slice (n, 2)
        as float32; None otherwise.

    Raises:
        InputError: values that the coding cannot express: beyond ±65504 for float16, or NaN or
            infinite for uint8.
    """
    dtype = coded_dtype(coding, values.dtype, values.ndim)
    if dtype == values.dtype:
        return values, None
    if dtype == torch.float16:
        halved = values.to(dtype)
        if bool((halved.isinf() & values.isfinite()).any()):
            raise InputError(
                f"'{name}' has values beyond ±65504, which float16 cannot express: send them "
                "unchanged, or as uint8."
            )
        return halved, None
    slices = values.movedim(axis, 0).flatten(1).float()
    if not bool(slices.isfinite().all()):
        raise InputError(
            f"'{name}' has NaN or infinite values, which uint8 cannot express: send them unchanged."
        )
    if not slices.numel():
        return values.to(dtype), slices.new_zeros(len(slices), 2)
    least, largest = slices.aminmax(dim=1)
    step = (largest / 255 - least / 255).clamp(min=torch.finfo(torch.float32).tiny)
    ranges = torch.stack([least, step], 1)
    shape = _along(axis, values.ndim)
    levels = (values.float() - least.view(shape)) / step.view(shape)
    return levels.round().clamp(0, 255).to(dtype), ranges


def expand(sent: Tensor, axis: int, dtype: torch.dtype, ranges: Tensor | None) -> Tensor:
    """Return the tensor from which `shrink` made fewer bytes, up to the coding's error.

    Args:
        sent: as it was sent.
        axis: of the samples.
        dtype: of the original.
        ranges: (n, 2) least value and step of each slice, if they were sent.
    """
    if ranges is None:
        return sent.to(dtype)
    least, step = (part.view(_along(axis, sent.ndim)) for part in ranges.unbind(1))
    return (sent.float() * step + least).to(dtype)


def _along(axis: int, ndim: int) -> list[int]:
    """Return the shape that broadcasts a vector along an axis."""
    return [-1 if i == axis else 1 for i in range(ndim)]
