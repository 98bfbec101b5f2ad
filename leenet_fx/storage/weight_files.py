"""Files of weights as training code leaves them: which state dicts they hold."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as from_bytes
from torch import Tensor

from leenet_fx.errors import StorageError, first_line

DEPTH = 4
"""Number of levels at which state dicts are searched for."""

PLAIN_TYPES: tuple[Any, ...] = (
    *(argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath),
    # numpy scalars, such as a best accuracy, whose builder is private.
    *(np.dtype, np.float64(0).__reduce__()[0]),
    *(type(np.dtype(kind)) for kind in (bool, "int32", "int64", "float16", "float32", "float64")),
)
"""Types that training code saves beside weights, and whose reading runs no code of the file."""


def read_weight_file(path: Path) -> Any:
    """Return the content of a .safetensors file or a torch file; no code from it is run.

    Args:
        path: of the file; its content, and not its name, determines how it is read.

    Raises:
        StorageError: the file is missing, damaged, or could be read only by running code from it.
    """
    if not path.is_file():
        raise StorageError(f"No weights '{path}'.")
    try:
        data = path.read_bytes() if _is_safetensors(path) else None
        if data is not None:
            return from_bytes(data)
        with torch.serialization.safe_globals(list(PLAIN_TYPES)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged archives and pickles raise errors of any kind.
        raise StorageError(_reason(path, error)) from error


def state_dicts(content: Any, entry: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Yield (entry, mapping of names to values) of each mapping that holds tensors.

    Args:
        content: of a file.
        entry: where `content` is in the file: keys, joined by dots; "" for the whole file.
        depth: number of levels to search.
    """
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        yield entry, named
    for key, value in named.items():
        if depth > 1:
            yield from state_dicts(value, f"{entry}.{key}" if entry else key, depth - 1)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    size = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and size <= path.stat().st_size - 8


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if "TorchScript" in text:
        return (
            f"Weights '{path}' cannot be read: it is a TorchScript archive, which holds code. "
            f"Convert it where you trust it: torch.save(torch.jit.load('{path}').state_dict(), "
            "'weights.pt')."
        )
    if found is None:
        return f"Weights '{path}' cannot be read: {first_line(error)}"
    return (
        f"Weights '{path}' cannot be read without running code from the file: it holds a "
        f"'{found[1]}' besides tensors. Convert it where you trust it: content = torch.load("
        f"'{path}', weights_only=False); torch.save(content.state_dict(), 'weights.pt') if it is a "
        "model, torch.save(content['state_dict'], 'weights.pt') if it is a checkpoint."
    )
