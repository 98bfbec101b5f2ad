"""Tensors in Ray's object store.

Ray pickles a tensor by `torch.save`, which defines classes for each one: they are cyclic garbage
that stays until the collector runs, and the memory of a replica that takes and gives tensors grows.
Arrays have none of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class StoredTensor(NamedTuple):
    """A tensor without gradients.

    Attributes:
        values: its bytes.
        dtype: of the tensor.
        order: its dimensions, the one with the largest stride first.
        shape: in that order.
        device: where it was.
    """

    values: NDArray[np.uint8]
    dtype: torch.dtype
    order: tuple[int, ...]
    shape: tuple[int, ...]
    device: str


def pack(tensor: Tensor) -> StoredTensor:
    """Return a tensor's values and layout.

    Args:
        tensor: dense, of any dtype, shape and memory format.
    """
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
    laid = tensor.detach().permute(order).contiguous()
    values = laid.reshape(-1).view(torch.uint8).cpu().numpy()
    return StoredTensor(values, tensor.dtype, order, tuple(laid.shape), str(tensor.device))


def unpack(stored: StoredTensor) -> Tensor:
    """Return the tensor, with the memory format that it had.

    Args:
        stored: what `pack` returned; its values are copied, since arrays of the object store are
            read-only, and a stage may write to its inputs.
    """
    values, dtype, order, shape, device = stored
    laid = torch.tensor(values).view(dtype).reshape(shape)
    back = sorted(range(len(order)), key=lambda place: order[place])
    return laid.permute(back).to(device)


def register() -> None:
    """Let this process store tensors so."""
    from ray.util import register_serializer

    serializers: dict[str, Any] = {"serializer": pack, "deserializer": unpack}
    register_serializer(torch.Tensor, **serializers)
