"""Image files in a tar file, which is not unpacked."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path
from typing import NamedTuple

from leenet_fx.data.decoding import readable_extensions
from leenet_fx.data.listing import ImageFile, Listing, extension_of
from leenet_fx.errors import InputError


class Section(NamedTuple):
    """Where the bytes of a member are.

    Attributes:
        offset: from the start of the tar file, in bytes.
        size: in bytes.
    """

    offset: int
    size: int


def list_tar(path: Path) -> Listing:
    """List the image files of an uncompressed tar file.

    A leading `./` is ignored, and so is a folder that contains everything else, which is how a
    folder is packed by its name. Links to members stand for their targets; a name that occurs twice
    is the last one, as in unpacking.

    Args:
        path: of the tar file.

    Raises:
        InputError: it is no tar file, or damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {posixpath.normpath(member.name): member for member in tar}
            end = tar.offset
        _check_end(path, end)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}") from error
    listing = Listing()
    extensions = readable_extensions()
    state = path.stat()
    folders: set[tuple[str, ...]] = set()
    files: dict[tuple[str, ...], tarfile.TarInfo] = {}
    for name, member in members.items():
        parts = _parts(name)
        if not parts or any(part.startswith(".") for part in parts):
            continue
        if member.isdir():
            folders.add(parts)
            continue
        target = _target(members, member)
        extension = extension_of(parts[-1])
        if target is None or extension not in extensions:
            listing.skipped[extension if target else "links to no file"] += 1
        elif target.issparse():
            raise InputError(f"'{path}': '{name}' is stored sparse: pack it again without.")
        else:
            files[parts] = target
    depth = _depth_of_root(set(files), folders)
    for parts, target in files.items():
        section = Section(target.offset_data, target.size)
        identity = (state.st_dev, state.st_ino, section.offset)
        listing.files.append(ImageFile("/".join(parts[depth:]), section, identity))
    listing.folders = {parts[depth] for parts in files if len(parts) > depth + 1}
    listing.folders |= {parts[depth] for parts in folders if len(parts) > depth}
    return listing


def _check_end(path: Path, end: int) -> None:
    """Raise ValueError if the members end at something other than the end of a tar file."""
    with path.open("rb") as file:
        file.seek(end)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise ValueError(f"damaged at byte {end}; what follows is not readable")


def _parts(name: str) -> tuple[str, ...]:
    """Return the parts of a path, without what leads to the folder that was packed."""
    parts = posixpath.normpath(name).split("/")
    while parts and parts[0] in ("", ".", ".."):
        parts.pop(0)
    return tuple(parts)


def _target(members: dict[str, tarfile.TarInfo], member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the regular file that a member is or links to, if there is one in the tar file."""
    seen: set[str] = set()
    found: tarfile.TarInfo | None = member
    while found is not None and not found.isfile():
        if found.name in seen or not (found.islnk() or found.issym()):
            return None
        seen.add(found.name)
        start = posixpath.dirname(found.name) if found.issym() else ""
        found = members.get(posixpath.normpath(posixpath.join(start, found.linkname)))
    return found


def _depth_of_root(files: set[tuple[str, ...]], folders: set[tuple[str, ...]]) -> int:
    """Return the number of leading folders that contain all others and no image themselves."""
    depth = 0
    while True:
        tops = {parts[depth] for parts in files}
        tops |= {parts[depth] for parts in folders if len(parts) > depth}
        has_images = any(len(parts) <= depth + 2 for parts in files)
        if len(tops) != 1 or has_images:
            return depth
        depth += 1
