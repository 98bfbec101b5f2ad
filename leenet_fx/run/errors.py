"""The errors of leenet_fx, or the like of them on a machine without leenet_fx."""

from __future__ import annotations

try:
    from leenet_fx.errors import DependencyError, InputError, StorageError, UnknownNameError
except ImportError:

    class InputError(ValueError):  # type: ignore[no-redef]
        """Invalid images or arguments."""

    class StorageError(OSError):  # type: ignore[no-redef]
        """A file that is missing, damaged, or none of leenet_fx."""

    class DependencyError(ImportError):  # type: ignore[no-redef]
        """A missing library."""

    class UnknownNameError(LookupError):  # type: ignore[no-redef]
        """A name that does not exist."""


__all__ = ["DependencyError", "InputError", "StorageError", "UnknownNameError"]
