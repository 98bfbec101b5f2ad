"""Image files below a folder."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path

from leenet_fx.data.decoding import readable_extensions
from leenet_fx.data.listing import ImageFile, Listing, extension_of
from leenet_fx.errors import InputError


def list_folder(root: Path) -> Listing:
    """List the image files below a folder; links are followed, each folder is read once a class.

    Args:
        root: of the class folders.

    Raises:
        InputError: a folder cannot be read.
    """
    listing = Listing()
    extensions = readable_extensions()
    try:
        resolved = root.resolve()
        above = {_identity(path, path.stat()) for path in (resolved, *resolved.parents)}
        for entry in _entries(root):
            if not entry.is_dir():
                _add_file(listing, entry, entry.name, extensions)
            elif _folder_identity(entry) in above:
                listing.links += 1
            else:
                listing.folders.add(entry.name)
                _add_class(listing, entry, above, extensions)
    except OSError as error:
        raise InputError(f"'{root}' cannot be read: {error}") from error
    return listing


def _add_class(
    listing: Listing,
    folder: os.DirEntry[str],
    above: set[Hashable],
    extensions: frozenset[str],
) -> None:
    """List the image files of a class."""
    seen = {*above, _folder_identity(folder)}
    remaining = [(folder.path, folder.name)]
    while remaining:
        path, name = remaining.pop()
        inner = []
        for entry in _entries(path):
            if not entry.is_dir():
                _add_file(listing, entry, f"{name}/{entry.name}", extensions)
                continue
            identity = _folder_identity(entry)
            if identity in seen:
                listing.links += 1
                continue
            seen.add(identity)
            inner.append((entry.path, f"{name}/{entry.name}"))
        remaining += reversed(inner)


def _add_file(
    listing: Listing, entry: os.DirEntry[str], name: str, extensions: frozenset[str]
) -> None:
    extension = extension_of(entry.name)
    try:
        state = entry.stat()
    except FileNotFoundError:
        # A broken link: reading it is the error that names it.
        identity: Hashable = entry.path
    else:
        if not entry.is_file():
            extension = ""
        identity = _identity(entry.path, state)
    if extension in extensions:
        listing.files.append(ImageFile(name, entry.path, identity))
    else:
        listing.skipped[extension] += 1


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder by name, without hidden files and folders."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=lambda entry: entry.name)


def _folder_identity(entry: os.DirEntry[str]) -> Hashable:
    return _identity(entry.path, entry.stat())


def _identity(path: str | Path, state: os.stat_result) -> Hashable:
    """Return what two paths of the same file have in common."""
    # Windows gives no number for the entries of a folder.
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)
