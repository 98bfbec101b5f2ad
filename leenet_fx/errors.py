"""The exceptions of leenet_fx, all derived from `EarlyExitError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import placement.errors

__all__ = [
    "DependencyError",
    "EarlyExitError",
    "ExportError",
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
    """Base class of the errors that leenet_fx raises."""


class UnknownNameError(EarlyExitError, LookupError):
    """A name that is not registered; the message contains the nearest registered one."""


class PlacementError(EarlyExitError, placement.errors.PlacementError):
    """A placement of exits that is impossible on this network."""


class InputError(EarlyExitError, ValueError):
    """Invalid images, labels or arguments; the message names what was expected."""


class TraceError(EarlyExitError, RuntimeError):
    """A model that cannot be captured as a graph; the message names the module at fault."""


class ModeError(EarlyExitError, RuntimeError):
    """A call that requires the model to be in another mode (training or evaluation)."""


class TrainingError(EarlyExitError, RuntimeError):
    """Training that cannot continue; the model has its last finite weights."""


class StorageError(EarlyExitError, OSError):
    """A file that cannot be written or read, or that belongs to another network."""


class ExportError(EarlyExitError, RuntimeError):
    """A network that a format cannot express, or a file that does not compute what it should."""


class DependencyError(EarlyExitError, ImportError):
    """A missing optional library; the message contains the command that installs it."""


@contextmanager
def placement_errors() -> Iterator[None]:
    """Re-raise errors of the `placement` package as the corresponding ones of leenet_fx.

    Raises:
        UnknownNameError, PlacementError: for those of `placement`.
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
    """Return the first line of an error's message, or the name of its type if that is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
