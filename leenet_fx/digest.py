"""Digests of weights that do not depend on threads, devices or memory formats."""

from __future__ import annotations

import hashlib
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def entries(module: nn.Module) -> dict[str, object]:
    """Return all that a module computes with, by name: its state dict and non-persistent buffers.

    Args:
        module: its parameters and buffers themselves are returned, not copies.
    """
    found: dict[str, object] = dict(module.named_buffers(remove_duplicate=False))
    return {**found, **module.state_dict(keep_vars=True)}


def checksum(value: object) -> str:
    """Return type, shape and CRC-32 of an entry of a state dict.

    A checksum shows whether a value was changed, at a fraction of the time of a SHA-256; it does
    not protect against changes that are made to keep it. Strides and devices do not enter. Of
    tensors on the meta device only dtype and shape are known.

    Args:
        value: a tensor of any kind, or a structure of tensors and plain values.
    """
    return "; ".join(_checksums(value))


def _checksums(value: object) -> Iterator[str]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _checksums(item)
    elif not isinstance(value, Tensor):
        # The representation of other objects may contain their address.
        plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype))
        yield repr(value) if plain else type(value).__name__
    elif hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()
        yield f"{type(value).__name__} {context}"
        for name in names:
            yield from _checksums(getattr(value, name))
    elif value.is_quantized:
        yield f"{value.dtype} {value.qscheme()}"
        yield from _checksums(value.int_repr())
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield f"{value.q_scale()} {value.q_zero_point()}"
        else:
            yield from _checksums([value.q_per_channel_scales(), value.q_per_channel_zero_points()])
    else:
        content = "" if value.is_meta else f"{zlib.crc32(_bytes(value)):08x}"
        yield f"{value.dtype} {tuple(value.shape)} {content}"


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
    digest = hashlib.sha256(_bytes(tensor)).hexdigest()
    if state is not None:
        reference = weakref.ref(tensor, lambda _: _entries.pop(tensor_id, None))
        _entries[tensor_id] = _Entry(reference, state, digest)
    return digest


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in logical order."""
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _state(tensor: Tensor) -> tuple[object, ...] | None:
    """Return what differs once a tensor was changed; None where torch does not count writes."""
    version = compat.version(tensor)
    if version is None or tensor.dtype.is_complex:
        return None
    # torch does not count writes through `tensor.data`. The sum of the elements' bits does not
    # depend on the order of summation, and takes a fraction of the time of a SHA-256.
    bits = tensor.detach().view(_INTEGERS[tensor.element_size()])
    return version, tensor.data_ptr(), tensor.shape, tensor.dtype, int(bits.sum(dtype=torch.int64))
