"""The description of a network beside its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leenet_fx.run.files import MANIFEST
from leenet_fx.storage.json_files import encode


def write_manifest(folder: Path, description: Mapping[str, Any]) -> None:
    """Write a description as JSON.

    Args:
        folder: of the files.
        description: plain values.
    """
    text = json.dumps(encode(description), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
