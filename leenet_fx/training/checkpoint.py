"""Resume state: what a killed run needs to end as if nothing had happened."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from leenet_fx.errors import InputError, StorageError
from leenet_fx.storage.files import write_atomically

FILE = "resume.pt"
SCHEMA = 1


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the resume state whole or not at all.

    Raises:
        StorageError: it cannot be written; the checkpoint before it is intact.
    """
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write_atomically(folder / FILE, buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The resume state in a folder, or None; reading it runs no code from it.

    Raises:
        StorageError: the file is damaged, or of another schema.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise StorageError(f"'{path}' is no checkpoint of fit, or is damaged.") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise StorageError(f"'{path}': expected a checkpoint of schema {SCHEMA}.")
    return state


def check_same_run(path: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises InputError naming the first setting in which a run differs from the one to resume."""
    for key, value in expected.items():
        if found.get(key) != value:
            raise InputError(
                f"'{path}' was made with {key}={found.get(key)!r}, this run has {key}={value!r}: "
                "resume with the same settings, or choose another folder."
            )


def random_state(loaders: Iterable[object]) -> dict[str, Any]:
    """The state of every generator that decides which images come next, global ones included."""
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
    """Puts back what `random_state` found.

    Raises:
        InputError: the loaders have another number of generators.
    """
    generators = _generators(loaders)
    if len(generators) != len(state["loaders"]):
        raise InputError(
            f"The run to resume had {len(state['loaders'])} generators in its loaders, this one "
            f"has {len(generators)}."
        )
    for generator, kept in zip(generators, state["loaders"], strict=True):
        generator.set_state(kept)
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    import numpy as np

    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))  # noqa: NPY002


def _generators(loaders: Iterable[object]) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        parts = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        parts.append(getattr(parts[-1], "sampler", None))
        for part in parts:
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                found.setdefault(id(generator), generator)
    return list(found.values())
