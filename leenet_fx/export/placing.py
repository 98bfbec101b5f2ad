"""Checksums of exported files, and their move to their place."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leenet_fx.errors import StorageError
from leenet_fx.run.files import CHECKSUMS, MANIFEST
from leenet_fx.storage.files import TEMPORARY, make_folder


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path, which is removed in the end.

    Raises:
        StorageError: the folder of `path` cannot be written to.
    """
    make_folder(path.parent)
    prefix = f".{path.name}{TEMPORARY}"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
        yield Path(folder)


def add_checksums(path: Path) -> None:
    """Write the SHA-256 of a file beside it, or those of the files of a folder into the folder.

    The text is that of `sha256sum`, which checks it too.
    """
    if path.is_dir():
        lines = [_line(file) for file in sorted(path.iterdir())]
        (path / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    else:
        checksum_file(path).write_text(_line(path), encoding="utf-8")


def checksum_file(path: Path) -> Path:
    """Return the path of the checksum of a file."""
    return path.with_name(f"{path.name}.sha256")


def check_place(path: Path, *, is_folder: bool) -> None:
    """Raise StorageError if there is something that an export must not replace."""
    if is_folder and path.is_dir():
        ours = (path / MANIFEST).exists() and (path / CHECKSUMS).exists()
        if any(path.iterdir()) and not ours:
            raise StorageError(
                f"'{path}' has files that are none of an exported network: choose another folder."
            )
    elif path.exists() and path.is_dir() != is_folder:
        kind = "a folder" if path.is_dir() else "a file"
        raise StorageError(f"'{path}' is {kind}: choose another path.")


def place(written: Path, path: Path) -> None:
    """Move a written file or folder to its path; a file's checksum is moved with it.

    Args:
        written: in a `working_folder` of `path`.
        path: may exist, and is replaced.

    Raises:
        StorageError: see `check_place`; or it cannot be moved.
    """
    check_place(path, is_folder=written.is_dir())
    try:
        if written.is_dir():
            _replace_folder(written, path)
            return
        # The old checksum beside a new file is noticed; an old file beside a new checksum, too.
        os.replace(written, path)
        os.replace(checksum_file(written), checksum_file(path))
    except OSError as error:
        raise StorageError(f"Cannot write '{path}': {error.strerror or error}.") from error


def _replace_folder(written: Path, path: Path) -> None:
    """Move a folder to a path; the one that was there is beside `written` afterwards."""
    old = written.with_name(f"{written.name}.old")
    if path.exists():
        path.rename(old)
    try:
        written.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


def _line(path: Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
