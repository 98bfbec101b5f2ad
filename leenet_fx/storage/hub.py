"""The Hugging Face hub: names of repositories, and downloads of saved networks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leenet_fx.errors import EarlyExitError, InputError, StorageError, first_line
from leenet_fx.storage.config import CONFIG
from leenet_fx.storage.weights import WEIGHTS

PREFIX = "hf:"

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(place: str | Path) -> bool:
    """Return whether a place is meant to be a repository, "hf:owner/name"."""
    return isinstance(place, str) and place.startswith(PREFIX)


def repository(place: str) -> tuple[str, str | None]:
    """Return the name of a repository and the revision.

    Args:
        place: "hf:owner/name", "hf:owner/name@revision", or the same without "hf:".

    Raises:
        InputError: another form.
    """
    name, at, revision = place.removeprefix(PREFIX).partition("@")
    if not NAME.fullmatch(name) or (at and not revision):
        raise InputError(
            "Expected 'owner/name' or 'owner/name@revision' of the Hugging Face hub, got "
            f"{place!r}."
        )
    return name, revision or None


def endpoint() -> str | None:
    """Return the address of the hub that the environment names at this moment."""
    return os.environ.get("HF_ENDPOINT") or None


def download(place: str | Path) -> Path:
    """Download the files of a saved network, or find them in the hub's cache.

    Nothing but the description and the weights is read.

    Args:
        place: "hf:owner/name" or "hf:owner/name@revision".

    Returns:
        The folder of the files.

    Raises:
        InputError: no name of a repository.
        StorageError: there is no such repository, it cannot be reached, or it lacks the files.
    """
    from huggingface_hub import snapshot_download

    name, revision = repository(str(place))
    with hub_errors(f"'{place}' cannot be downloaded"):
        folder = snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, WEIGHTS], endpoint=endpoint()
        )
    return Path(folder)


@contextmanager
def hub_errors(problem: str) -> Iterator[None]:
    """Turn errors of the hub and of the network into `StorageError`.

    Args:
        problem: start of the message.
    """
    try:
        yield
    except EarlyExitError:
        raise
    except Exception as error:
        # The client raises the errors of its HTTP library, which differs between versions.
        raise StorageError(f"{problem}: {first_line(error)}") from error
