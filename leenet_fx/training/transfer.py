"""Functions that are sent to spawned processes, with random generators among their arguments."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch


class Transferable:
    """A function that pickles with its own treatment of random generators.

    torch pickles a generator's state as a tensor in shared memory, which is freed before a spawned
    process reads it. Here the state is pickled as bytes. Other objects are pickled as in any
    transfer between processes, so tensors are shared, not copied.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes]]:
        buffer = io.BytesIO()
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(self.function)
        return _unpickle, (buffer.getvalue(),)


class _Pickler(ForkingPickler):
    """A pickler for spawned processes; the reducers of `ForkingPickler` stay as they are."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        # A copy, since ForkingPickler's table holds the reducers of all of its instances.
        self.dispatch_table = {**self.dispatch_table, torch.Generator: _reduce_generator}


def _reduce_generator(generator: torch.Generator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _make_generator, (bytes(generator.get_state().tolist()), str(generator.device))


def _make_generator(state: bytes, device: str) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def _unpickle(data: bytes) -> Transferable:
    return Transferable(pickle.loads(data))
