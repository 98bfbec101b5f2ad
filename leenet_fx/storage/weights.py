"""exits.safetensors: the weights of exits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from leenet_fx.errors import StorageError
from leenet_fx.storage.fingerprint import is_new
from leenet_fx.surgery.module import EarlyExitModule

WEIGHTS = "exits.safetensors"
POLICY = "exits.thresholds"
"""Entry of the state dict that holds thresholds, which `exit_config.json` has with the policy."""


def weights_of(ee: EarlyExitModule, backbone: bool) -> dict[str, Tensor]:
    """Return the tensors to save, by their names in the state dict, on the CPU.

    Args:
        ee: the network.
        backbone: whether to include the weights that are those of the original model.
    """
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in ee.state_dict().items()
        if isinstance(tensor, Tensor) and name != POLICY and (backbone or is_new(ee, name))
    }


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; tied weights become separate tensors."""
    return to_bytes(_without_shared_storage(weights))


def read_weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; reading it runs no code from the file.

    Args:
        path: of the file.
        sha256: expected digest of the file, in hexadecimal.

    Raises:
        StorageError: the file is missing, damaged, or has another digest.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot read '{path}': {error.strerror or error}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 != digest:
        raise StorageError(
            f"'{path}' does not belong to the exit_config.json beside it: expected sha256 "
            f"{sha256}, found {digest}."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StorageError(f"'{path}' is damaged: {error}.") from error


def check_shapes(path: Path, weights: Mapping[str, Tensor], ee: EarlyExitModule) -> None:
    """Raise StorageError if a tensor is missing, unknown, or of another shape than the network's.

    Args:
        path: of the file, for messages.
        weights: the file's tensors.
        ee: the network that they are for.
    """
    own = ee.state_dict()
    for name in sorted({*weights, *(name for name in own if is_new(ee, name))} - {POLICY}):
        found = tuple(weights[name].shape) if name in weights else "nothing"
        expected = tuple(own[name].shape) if name in own else "nothing"
        if expected != found:
            raise StorageError(
                f"'{path}': '{name}': expected shape {expected}, the network's, found {found}."
            )


def _without_shared_storage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate
