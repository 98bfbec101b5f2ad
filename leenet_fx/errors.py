"""The exceptions of leenet_fx; every one derives from `EarlyExitError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import placement.errors

__all__ = [
    "DependencyError",
    "EarlyExitError",
    "InputError",
    "ModeError",
    "PlacementError",
    "StorageError",
    "TraceError",
    "TrainingError",
    "UnknownNameError",
    "first_line",
    "placement_errors",
]


class EarlyExitError(Exception):
    """Base of every error that leenet_fx raises on purpose."""


class UnknownNameError(EarlyExitError, LookupError):
    """A name is not registered; the message names the nearest one that is."""


class PlacementError(EarlyExitError, placement.errors.PlacementError):
    """Exits cannot be placed as requested on this network."""


class InputError(EarlyExitError, ValueError):
    """Images, labels or arguments that do not fit; the message says what was expected."""


class TraceError(EarlyExitError, RuntimeError):
    """A model that cannot be turned into a graph; the message names the module at fault."""


class ModeError(EarlyExitError, RuntimeError):
    """A call that needs the model in another mode (training or evaluation)."""


class TrainingError(EarlyExitError, RuntimeError):
    """Training cannot go on; the last good weights are in place."""


class StorageError(EarlyExitError, OSError):
    """A file that cannot be written, read, or that belongs to another network."""


class DependencyError(EarlyExitError, ImportError):
    """An optional library is missing; the message says how to install it."""


@contextmanager
def placement_errors() -> Iterator[None]:
    """Re-raise errors of the `placement` package as leenet_fx's own.

    Raises:
        UnknownNameError, PlacementError: as `placement` raised them.
    """
    try:
        yield
    except EarlyExitError:
        raise
    except placement.errors.UnknownNameError as error:
        raise UnknownNameError(str(error)) from error
    except placement.errors.PlacementError as error:
        raise PlacementError(str(error)) from error


def first_line(error: Exception) -> str:
    """Return an error's message in one line, or its type's name where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
