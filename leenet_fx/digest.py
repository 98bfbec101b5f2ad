"""Digest of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def weights_digest(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 digest, in hexadecimal, of named tensors.

    Name, shape, dtype and bytes count, in the order in which the tensors come. Bytes are taken in
    logical order, so neither memory format nor device nor number of threads matters.

    Args:
        named_tensors: name and tensor of any shape; none on the meta device.
    """
    digest = hashlib.sha256()
    for name, tensor in named_tensors:
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
