"""The exceptions of leenet_fx; every one derives from `EarlyExitError`."""

from placement.errors import EarlyExitError, PlacementError, UnknownNameError

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
]


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


def first_line(error: Exception) -> str:
    """What an error says in one line; its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
