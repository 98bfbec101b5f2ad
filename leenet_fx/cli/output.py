"""Results on stdout."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, in the form of the files."""
    from leenet_fx.storage.json_files import encode

    print(json.dumps(encode(value), indent=2, allow_nan=False))
