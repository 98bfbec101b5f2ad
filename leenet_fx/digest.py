"""Digests of weights that do not depend on threads, devices or memory formats."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.graph import compat

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer type for each element size in bytes."""


def weights_digest(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of tensors' names, shapes, dtypes and bytes in logical order.

    Strides and devices do not enter, so tensors in channels_last have the digest of the same
    tensors in the default format. The order of the names does not enter either. Of tensors on the
    meta device only names, shapes and dtypes are hashed.

    A tensor that is passed again is hashed again only if it was changed, so pass parameters and
    buffers themselves (`state_dict(keep_vars=True)`), not their detached copies.

    Args:
        named_tensors: unique names and tensors of any shape and dtype.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors, key=lambda item: item[0]):
        content = "" if tensor.is_meta else _content_digest(tensor)
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype), content)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Entry:
    """The digest of a tensor, and the state from which it was computed."""

    tensor: weakref.ref[Tensor]
    state: tuple[object, ...] | None
    digest: str


_entries: dict[int, _Entry] = {}
"""Digests by the identity of the tensor; an entry is removed with its tensor."""


def _content_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes in logical order."""
    tensor_id, state = id(tensor), _state(tensor)
    entry = _entries.get(tensor_id)
    if entry is not None and entry.tensor() is tensor and entry.state == state:
        return entry.digest
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(content.numpy().data).hexdigest()
    if state is not None:
        reference = weakref.ref(tensor, lambda _: _entries.pop(tensor_id, None))
        _entries[tensor_id] = _Entry(reference, state, digest)
    return digest


def _state(tensor: Tensor) -> tuple[object, ...] | None:
    """Return what differs once a tensor was changed; None where torch does not count writes."""
    version = compat.version(tensor)
    if version is None or tensor.dtype.is_complex:
        return None
    # torch does not count writes through `tensor.data`. The sum of the elements' bits does not
    # depend on the order of summation, and takes a fraction of the time of a SHA-256.
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    return version, tensor.data_ptr(), tensor.shape, tensor.dtype, int(bits.sum(dtype=torch.int64))
