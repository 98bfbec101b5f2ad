"""exits.safetensors: the weights of exits, and what else is not the original model's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from leenet_fx.digest import entries
from leenet_fx.errors import InputError, StorageError, first_line
from leenet_fx.storage.fingerprint import is_new
from leenet_fx.surgery.module import EarlyExitModule

WEIGHTS = "exits.safetensors"
NEXT_WEIGHTS = "exits.safetensors.next"
"""The weights of a network that is about to replace the saved one."""

POLICY = "exits.thresholds"
"""Entry of the state dict that holds thresholds, which `exit_config.json` has with the policy."""


def weights_of(ee: EarlyExitModule, changed: Sequence[str], backbone: bool) -> dict[str, Tensor]:
    """Return the tensors to save, by name, on the CPU.

    Args:
        ee: the network.
        changed: names of what is not the original model's, from `changed_entries`.
        backbone: whether to include the weights that are those of the original model.

    Raises:
        InputError: an entry to save is no tensor, or has no content (meta device).
    """
    persistent = ee.state_dict().keys()
    weights = {}
    for name, value in entries(ee).items():
        new = is_new(name, changed) if name in persistent else name in changed
        if name == POLICY or not (new or (backbone and name in persistent)):
            continue
        if isinstance(value, Tensor):
            if value.is_meta:
                raise InputError(f"'{name}' is on the meta device: there are no weights to save.")
            weights[name] = value.detach().cpu().contiguous()
        elif new:
            raise InputError(
                f"'{name}' cannot be saved: expected a tensor, found {type(value).__name__}. Save "
                "the network before it is quantised or packed."
            )
    return weights


def encode_weights(weights: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file; tied weights become separate tensors.

    Raises:
        InputError: safetensors has no form for a tensor.
    """
    try:
        return to_bytes(_without_shared_storage(weights))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The weights cannot be saved: {first_line(error)}") from error


def read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a saved network; reading them runs no code from the file.

    Args:
        folder: of the file `WEIGHTS`, or `NEXT_WEIGHTS` if `save` was interrupted after it had
            replaced the description.
        sha256: expected digest of the file, in hexadecimal.

    Raises:
        StorageError: the file is missing, damaged, or has another digest.
    """
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot read '{path}': {error.strerror or error}.") from error
    digest = hashlib.sha256(data).hexdigest()
    if sha256 != digest and (folder / NEXT_WEIGHTS).exists():
        data = (folder / NEXT_WEIGHTS).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
    if sha256 != digest:
        raise StorageError(
            f"'{path}' does not belong to the exit_config.json beside it: expected sha256 "
            f"{sha256}, found {digest}."
        )
    try:
        return from_bytes(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(f"'{path}' is damaged: {first_line(error)}.") from error


def check_shapes(
    path: Path, weights: Mapping[str, Tensor], ee: EarlyExitModule, changed: Sequence[str]
) -> None:
    """Raise StorageError if a tensor is missing, unknown, or of another shape than the network's.

    Args:
        path: of the file, for messages.
        weights: the file's tensors.
        ee: the network that they are for.
        changed: names of what the file must hold besides the exits.
    """
    own, persistent = entries(ee), ee.state_dict().keys()
    new = {name for name in persistent if is_new(name, (*ee.spec.changed, *changed))}
    for name in sorted({*weights, *new} - {POLICY}):
        found = _shape(weights.get(name))
        expected = _shape(own.get(name))
        if expected != found:
            raise StorageError(
                f"'{path}': '{name}': expected shape {expected}, the network's, found {found}."
            )


def check_sharing(path: Path, weights: Mapping[str, Tensor], ee: EarlyExitModule) -> None:
    """Raise StorageError if loading would change a model that shares its weights with the network.

    Args:
        path: of the file, for messages.
        weights: the file's tensors, of the right shapes.
        ee: the network that they are for.
    """
    if not ee.spec.shares_weights:
        return
    own = entries(ee)
    for name, weight in weights.items():
        shared = own[name]
        if is_new(name, ee.spec.changed) or not isinstance(shared, Tensor):
            continue
        if not torch.equal(weight.to(shared), shared):
            raise StorageError(
                f"'{path}': '{name}' would change the original model, whose weights this network "
                "shares: attach with copy=True."
            )


@torch.no_grad()
def set_weights(ee: EarlyExitModule, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors of the right shapes into a network's weights and buffers."""
    # Some modules of torch require all of their entries, and the versions that a state dict
    # records, so the present ones are completed. A tied weight has the value of the loaded one.
    state = ee.state_dict(keep_vars=True)
    loaded = {id(state[name]) for name in weights.keys() & state.keys()}
    for name in [name for name, value in state.items() if id(value) in loaded]:
        del state[name]
    buffers = {name: w for name, w in weights.items() if name not in ee.state_dict()}
    state.update({name: w for name, w in weights.items() if name not in buffers})
    ee.load_state_dict(state, strict=False)
    for name, weight in buffers.items():
        ee.get_buffer(name).copy_(weight)


def _shape(value: object) -> tuple[int, ...] | str:
    if value is None:
        return "nothing"
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _without_shared_storage(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate
