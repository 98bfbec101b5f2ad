"""Files of exported networks: their checksums, and the description of the network in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import StorageError

SCHEMA = 1
"""Version of what this module reads; a file of a higher version is refused."""

PREFIX = "leenet_fx."
"""Of the names of metadata in an ONNX file."""

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"


def read_file(path: Path) -> bytes:
    """Return the content of a file whose checksum is beside it."""
    content = _bytes(path)
    checksums = path.with_name(f"{path.name}.sha256")
    if not checksums.exists():
        raise StorageError(
            f"There is no '{checksums}', which leenet_fx.export writes beside '{path.name}': copy "
            f"it too. Or '{path.name}' is no exported network."
        )
    _check_content(path, content, _checksums(checksums))
    return content


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, by name."""
    if not (folder / MANIFEST).exists() or not (folder / CHECKSUMS).exists():
        raise StorageError(
            f"'{folder}' is no network that leenet_fx.export wrote: '{MANIFEST}' and "
            f"'{CHECKSUMS}' are expected."
        )
    expected = _checksums(folder / CHECKSUMS)
    content = {}
    for name in expected:
        if Path(name).name != name:
            raise StorageError(f"'{folder / CHECKSUMS}' names '{name}', which is not beside it.")
        content[name] = _bytes(folder / name)
        _check_content(folder / name, content[name], expected)
    return content


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _checksums(path: Path) -> dict[str, str]:
    """Return the checksums of a file in the form of `sha256sum`, by name."""
    try:
        lines = [line for line in _bytes(path).decode().splitlines() if line.strip()]
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        raise StorageError(f"'{path}' is no list of checksums.") from error


def _check_content(path: Path, content: bytes, expected: Mapping[str, str]) -> None:
    found = hashlib.sha256(content).hexdigest()
    if expected.get(path.name) != found:
        raise StorageError(
            f"'{path}' is damaged, or not the file that was exported: expected SHA-256 "
            f"{expected.get(path.name)}, found {found}."
        )


def check_schema(description: Mapping[str, Any], path: Path) -> None:
    """Raise StorageError for a description of another program or of a newer schema."""
    schema = description.get("schema")
    if not isinstance(schema, int):
        raise StorageError(f"'{path}' was not written by leenet_fx.export.")
    if schema > SCHEMA:
        raise StorageError(
            f"'{path}' has schema {schema}, this version of leenet_fx reads up to {SCHEMA}: update "
            "it."
        )


def read_json(text: str | bytes, path: Path) -> Any:
    """Return the values of a description.

    Raises:
        StorageError: not JSON.
    """
    try:
        return json.loads(text, object_hook=_special)
    except ValueError as error:
        raise StorageError(f"'{path}': the description is not JSON: {error}.") from error


def _special(found: dict[str, Any]) -> Any:
    """Return the number that `{"__float__": "inf"}` stands for."""
    return float(found["__float__"]) if set(found) == {"__float__"} else found
