"""JSON files that any parser can read, and whose content cannot change unnoticed.

A file holds one object, with the SHA-256 of its content beside it. JSON has no infinity and no NaN:
`{"__float__": "inf"}` stands for them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from leenet_fx.errors import StorageError, first_line
from leenet_fx.storage.files import read_text

T = TypeVar("T")

DIGEST = "content_sha256"
"""Key of the digest of all other keys and their values."""

FLOAT = "__float__"
"""Key of an object that stands for infinity or NaN."""

SPECIAL = ("inf", "-inf", "nan")


def to_json(content: Mapping[str, Any], indent: int = 2) -> str:
    """Return the text of a file.

    Args:
        content: plain values; tuples become lists.
        indent: number of spaces.

    Raises:
        TypeError: a value is none that JSON has.
    """
    encoded = encode(content)
    complete = {**encoded, DIGEST: content_digest(content)}
    return json.dumps(complete, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the content of a file, without its digest.

    Files without a digest, and the literals NaN and Infinity, are read too.

    Raises:
        StorageError: the file is missing, no JSON, or not as it was written.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_object)
        # Unpaired surrogates are valid in JSON, but in no text that is written or printed.
        json.dumps(content, ensure_ascii=False).encode()
        expected = content.pop(DIGEST, None) if isinstance(content, dict) else None
        found = content_digest(content)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"'{path}' is not JSON: {first_line(error)}.") from error
    if expected not in (None, found):
        raise StorageError(
            f"'{path}' was edited or damaged: expected content of digest {expected!r}, found "
            f"{found!r}. Write it again; or, if the edit is on purpose, remove '{DIGEST}'."
        )
    return content


def content_digest(content: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of keys and the layout of the text."""
    plain = json.loads(json.dumps(encode(content)))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def validated(kind: type[T], content: object, path: Path, where: str = "") -> T:
    """Return an object of a dataclass whose fields have the values of a mapping.

    Values are not converted: a number in quotes is no number. Keys that are no field are ignored.

    Args:
        kind: the dataclass.
        content: plain values, as `read_json` returns them.
        path: of the file, for messages.
        where: name of the part of the file that `content` is, for messages.

    Raises:
        StorageError: a key is missing, or a value is of another type or out of range.
    """
    try:
        found: T = _adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        missing = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing"]
        prefix = f"{where}." if where else ""
        if missing:
            raise StorageError(f"'{path}' lacks '{prefix}{min(missing)}'.") from error
        first = error.errors()[0]
        key = prefix + ".".join(map(str, first["loc"]))
        raise StorageError(
            f"'{path}': {f'{key!r}: ' if key else ''}{first['msg']}, found "
            f"{_shortened(first['input'])}."
        ) from error
    return found


def encode(value: Any) -> Any:
    """Return plain values with infinity and NaN in the form that JSON has."""
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(float(value))}
    return value


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values for {next(n for n in names if names.count(n) > 1)!r}")
    if set(found) == {FLOAT}:
        if found[FLOAT] not in SPECIAL:
            raise ValueError(f"{found[FLOAT]!r} is none of {', '.join(SPECIAL)}")
        return float(found[FLOAT])
    return found


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
