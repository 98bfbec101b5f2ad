"""Files that are written atomically: complete, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from leenet_fx.errors import StorageError

TEMPORARY = ".unfinished."
"""Part of the names of files that are being written."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically and flush it to disk, so that it survives a crash.

    Args:
        path: of the file; its folder is created if needed.
        content: text, written as UTF-8, or bytes.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full; an existing file at
            `path` is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{TEMPORARY}")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        _discard(temporary)
        raise _storage_error(path, error) from error
    except BaseException:
        _discard(temporary)
        raise


def rename(path: Path, target: Path) -> None:
    """Rename a file atomically, replacing the target.

    Raises:
        StorageError: it cannot be renamed.
    """
    try:
        path.replace(target)
    except OSError as error:
        raise _storage_error(target, error) from error


def make_folder(path: Path) -> None:
    """Create a folder and check that files can be written to it.

    Raises:
        StorageError: the folder cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _storage_error(path, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of interrupted writes."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        StorageError: the file is missing or cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"'{path}' is not a text file.") from error


def check_free(path: Path, overwrite: bool) -> None:
    """Raise StorageError if a file exists and must not be overwritten."""
    if path.exists() and not overwrite:
        raise StorageError(f"'{path}' exists already; --overwrite replaces it.")


def _discard(temporary: Path | None) -> None:
    if temporary is not None:
        temporary.unlink(missing_ok=True)


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(f"Cannot write '{path}': {error.strerror or error}.")
