"""transform.json: how images become the input of the network beside it."""

from __future__ import annotations

from pathlib import Path

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.errors import StorageError
from leenet_fx.storage.files import write_atomically
from leenet_fx.storage.json_files import read_json, to_json

TRANSFORM = "transform.json"
"""File beside the exits that has the transform they were fitted with."""


def write_transform(folder: Path, config: TransformConfig) -> None:
    """Write `transform.json`.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomically(folder / TRANSFORM, to_json(config.to_dict()))


def read_transform(folder: Path) -> TransformConfig | None:
    """Return the transform that `write_transform` wrote; None if there is no file.

    Raises:
        StorageError: the file is damaged.
    """
    path = folder / TRANSFORM
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return TransformConfig.from_dict(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"'{path}' is damaged: {error}") from error
