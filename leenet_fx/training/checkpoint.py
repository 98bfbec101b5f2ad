"""Checkpoints, from which an interrupted run is resumed with the same result."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from leenet_fx.errors import InputError, StorageError
from leenet_fx.storage.files import write_atomically

FILE = "resume.pt"
SCHEMA = 3


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        StorageError: it cannot be written; the checkpoint before it is intact.
    """
    content = io.BytesIO()
    torch.save(dict(state), content)
    # torch.load does not notice changed bytes of a tensor.
    sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
    tensor = torch.frombuffer(content.getbuffer(), dtype=torch.uint8)
    file = io.BytesIO()
    torch.save({"schema": SCHEMA, "sha256": sha256, "content": tensor}, file)
    write_atomically(folder / FILE, file.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the checkpoint in a folder, or None; reading it runs no code from it.

    Raises:
        StorageError: the file is damaged, or of another schema.
    """
    path = folder / FILE
    if not path.exists():
        return None
    file = _torch_load(path, path)
    found = file.get("schema") if isinstance(file, dict) else None
    if found != SCHEMA:
        raise StorageError(
            f"'{path}': expected a checkpoint of schema {SCHEMA}, found {found}: resume with the "
            "version of leenet-fx that wrote it, or choose another folder."
        )
    content = file.get("content")
    data = bytes(content.numpy()) if isinstance(content, torch.Tensor) else b""
    if hashlib.sha256(data).hexdigest() != file.get("sha256"):
        raise StorageError(f"'{path}' is damaged: its content has another digest.")
    return dict(_torch_load(io.BytesIO(data), path))


def _torch_load(source: Path | io.BytesIO, path: Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged archives and pickles raise errors of any kind.
        raise StorageError(f"'{path}' is not a checkpoint of fit, or is damaged.") from error


def check_same_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Check that two runs agree.

    Args:
        path: of the file that describes the run to resume, for the message.
        expected: arguments of this run.
        found: arguments of the run to resume.

    Raises:
        InputError: they differ; the message names the first argument that does.
    """
    for key, value in expected.items():
        if found.get(key) != value:
            raise InputError(
                f"'{path}' was made with {key}={found.get(key)!r}, this run has {key}={value!r}: "
                "resume with the same arguments, or choose another folder."
            )


def is_lengthened(expected: Sequence[int], found: Sequence[int]) -> bool:
    """Return whether phases of a run have more epochs than those of a run to resume, and none less.

    Args:
        expected: number of epochs of each phase of this run.
        found: of the run to resume.
    """
    pairs = list(zip(expected, found, strict=False))
    return (
        len(expected) == len(found)
        and list(expected) != list(found)
        and all(more >= fewer for more, fewer in pairs)
    )


def check_same_network(
    path: Path, expected: Sequence[Mapping[str, str]], found: Sequence[Mapping[str, str]]
) -> None:
    """Check that two networks run the same operations between exits.

    Args:
        path: of the checkpoint, for the message.
        expected: digests of the checkpoint's network, as `storage.exits.fingerprint` returns them.
        found: digests of this network.

    Raises:
        InputError: they differ.
    """
    for saved, own in zip(expected, found, strict=False):
        if saved != own:
            raise InputError(
                f"'{path}' is of another network: up to '{own['up_to']}' expected {saved}, found "
                f"{own}."
            )


def random_state(loaders: Iterable[object]) -> dict[str, Any]:
    """Return the state of every random generator that determines the order of images.

    These are the generators of the loaders, and the global ones of torch, numpy and Python.
    """
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }
    import numpy as np

    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state["numpy"] = [name, torch.from_numpy(np.array(keys)), *rest]
    return state


def set_random_state(state: Mapping[str, Any], loaders: Iterable[object]) -> None:
    """Restore the state that `random_state` returned.

    Raises:
        InputError: the loaders have another number of generators.
    """
    generators = _generators(loaders)
    if len(generators) != len(state["loaders"]):
        raise InputError(
            f"The run to resume had {len(state['loaders'])} generators in its loaders, this one "
            f"has {len(generators)}."
        )
    for generator, saved in zip(generators, state["loaders"], strict=True):
        generator.set_state(saved)
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    import numpy as np

    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))  # noqa: NPY002


def _generators(loaders: Iterable[object]) -> list[torch.Generator]:
    """Return the distinct generators of loaders and their samplers."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        samplers = [getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)]
        for part in (loader, samplers[0], batch_sampler, samplers[1]):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())
