"""The image files of a data set and their classes, from the names of files alone.

A class is a folder in the root; its images lie in it at any depth. Classes and files are in the
order of torchvision's `ImageFolder`: classes by the code points of their names; files of a class by
the name of their folder, then by their own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from leenet_fx.errors import InputError

logger = logging.getLogger("leenet_fx")

LISTED = 5
"""Number of names that a message lists."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "validate"),
    "test": ("test", "testing"),
}
"""Names, in any case, of the folders or tar files of each part of a data set."""


class ImageFile(NamedTuple):
    """An image file below the root.

    Attributes:
        name: path relative to the root, with slashes.
        location: where its bytes are.
        identity: equal for two names of the same stored file.
    """

    name: str
    location: Any
    identity: Hashable


@dataclass
class Listing:
    """What lies below a root; hidden files and folders, whose names start with a dot, are left out.

    Attributes:
        files: image files.
        folders: names of the folders in the root.
        skipped: number of other files by extension.
        links: number of links that were not followed, since they lead to a folder above the root
            or to one already read.
    """

    files: list[ImageFile] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    links: int = 0


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and their labels.

    Attributes:
        classes: names of the classes, in the order of their labels.
        files: image files, class by class in the order of the names.
        targets: label of each file.
    """

    classes: tuple[str, ...]
    files: list[ImageFile]
    targets: list[int]


def label_files(
    root: Path, listing: Listing, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """Label files by the folder in the root that they lie in; log a warning of what is skipped.

    Args:
        root: for messages.
        listing: what lies below it.
        classes: names of the classes in the order of their labels; None sorts them.

    Raises:
        InputError: no images, images outside class folders, fewer than two classes, a class without
            images, a file in two classes, folders that are the parts of a data set, or `classes`
            that are not the names of the folders.
    """
    loose = [file.name for file in listing.files if "/" not in file.name]
    if loose:
        raise InputError(
            f"'{root}' has {len(loose)} images outside class folders, such as '{min(loose)}': move "
            "each into a folder named after its class."
        )
    if not listing.files:
        raise InputError(
            f"'{root}' has no images in class folders{_describe(' (skipped: ', listing, ')')}."
        )
    _check_folders(root, listing)
    names = sorted(listing.folders) if classes is None else _in_order(root, listing, classes)
    by_class: dict[str, list[ImageFile]] = {name: [] for name in sorted(listing.folders)}
    for file in listing.files:
        by_class[file.name.partition("/")[0]].append(file)
    label_of = {name: label for label, name in enumerate(names)}
    files: list[ImageFile] = []
    targets: list[int] = []
    seen: dict[Hashable, ImageFile] = {}
    repeated = listing.links
    for name, members in by_class.items():
        for file in sorted(members, key=_position):
            first = seen.setdefault(file.identity, file)
            if first is file:
                files.append(file)
                targets.append(label_of[name])
            elif first.name.partition("/")[0] == name:
                repeated += 1
            else:
                raise InputError(
                    f"'{root}': '{first.name}' and '{file.name}' are the same file in two classes: "
                    "remove one of them."
                )
    _warn_of_skipped(root, listing)
    if repeated:
        logger.warning("'%s': skipped %d links to what is read already.", root, repeated)
    return LabelledFiles(tuple(names), files, targets)


def unlabelled_files(root: Path, listing: Listing) -> LabelledFiles | None:
    """Return the images of a root that has no folders, by name; None if it has folders or no image.

    Args:
        root: for messages.
        listing: what lies below it.

    Returns:
        No classes, and the label -1 for each file.
    """
    if listing.folders or not listing.files:
        return None
    _warn_of_skipped(root, listing)
    files = sorted(listing.files, key=_position)
    return LabelledFiles((), files, [-1] * len(files))


def extension_of(name: str) -> str:
    """Return the extension of a file name in lower case, with the dot; empty if it has none."""
    stem, dot, extension = name.rpartition(".")
    return f".{extension.lower()}" if dot and stem else ""


def listed(names: Sequence[str]) -> str:
    """Return the first `LISTED` names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def names_a_split(name: str) -> str | None:
    """Return "train", "val" or "test" if a folder is named so, in any case and synonym."""
    lower = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if lower in names), None)


def _check_folders(root: Path, listing: Listing) -> None:
    """Raise InputError if the folders in the root are not two or more classes with images."""
    filled = {file.name.partition("/")[0] for file in listing.files}
    empty = sorted(listing.folders - filled)
    if empty:
        raise InputError(f"Class folder '{root / empty[0]}' has no images.")
    splits = {names_a_split(name) for name in filled}
    if None not in splits or ("train" in splits and len(splits - {None}) > 1):
        raise InputError(
            f"'{root}' has the folders {_quoted(filled)}, which are parts of a data set and not "
            "classes: it needs train and val or test, each a folder or .tar with one folder per "
            "class."
        )
    if len(filled) == 1:
        (name,) = filled
        raise InputError(
            f"'{root}' has one class folder, '{name}', and needs two or more: name the folder that "
            "contains the class folders."
        )


def _in_order(root: Path, listing: Listing, classes: Sequence[str]) -> list[str]:
    """Return `classes` if they name each folder once."""
    unknown = [name for name in classes if name not in listing.folders]
    missing = sorted(listing.folders - set(classes))
    repeated = sorted(name for name, count in Counter(classes).items() if count > 1)
    problems = []
    if unknown:
        near = get_close_matches(unknown[0], sorted(listing.folders), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        problems.append(f"'{unknown[0]}' is no class folder{hint}")
    if missing:
        problems.append(f"{_quoted(missing)} missing")
    if repeated:
        problems.append(f"'{repeated[0]}' given twice")
    if problems:
        raise InputError(
            f"classes= (--classes) must name each class folder of '{root}' once: "
            f"{'; '.join(problems)}."
        )
    return list(classes)


def _warn_of_skipped(root: Path, listing: Listing) -> None:
    if listing.skipped:
        logger.warning(
            "'%s': skipped files that are no images Pillow reads: %s.", root, _describe("", listing)
        )


def _position(file: ImageFile) -> tuple[str, str]:
    folder, _, name = file.name.rpartition("/")
    return folder, name


def _describe(before: str, listing: Listing, after: str = "") -> str:
    """Return the numbers of skipped files by extension; an empty text if there are none."""
    if not listing.skipped:
        return ""
    counts = sorted(listing.skipped.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} {name or 'without extension'}" for name, count in counts)
    return f"{before}{text}{after}"


def _quoted(names: Sequence[str] | set[str]) -> str:
    return listed([f"'{name}'" for name in sorted(names)])
