"""The form of the records on disk: what `read_records` accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leenet_fx.errors import StorageError
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.evaluate import Evaluation
from leenet_fx.evaluation.sweep import Sweep
from leenet_fx.storage.json_files import validated


@dataclass(frozen=True)
class Boundary:
    """An exit or a candidate, with its cost."""

    name: str
    flops: int
    relative_flops: float


@dataclass(frozen=True)
class Network:
    """The description of a network, from `describe_network`."""

    model: str
    unit: str
    exits: tuple[Boundary, ...]
    candidates: tuple[Boundary, ...]
    placement: tuple[str, ...]
    strategy: str
    branch: str
    image_shape: tuple[int, ...]
    num_classes: int


@dataclass(frozen=True)
class Image:
    """A sample image."""

    src: str
    label: str
    predicted: str
    correct: bool
    confidence: float | None = None


@dataclass(frozen=True)
class Record:
    """The entries of a record besides the measurements."""

    command: str
    environment: dict[str, Any]
    config: dict[str, Any]
    network: Network | None
    classes: tuple[str, ...]
    images: tuple[tuple[Image, ...], ...] | None


RESULTS: Mapping[str, type[Any]] = {
    "evaluation": Evaluation,
    "sweep": Sweep,
    "comparison": Comparison,
}
"""The class of the measurements of each kind of record."""


def check_form(record: Mapping[str, Any], kind: str, path: Path) -> None:
    """Raise StorageError if a record lacks a key, or has a value of another type.

    Args:
        record: of the current schema.
        kind: "evaluation", "sweep" or "comparison".
        path: of its file, for messages.
    """
    checked = validated(Record, record, path)
    if kind not in record:
        raise StorageError(f"'{path}' lacks '{kind}'.")
    validated(RESULTS[kind], record[kind], path, kind)
    if checked.network is None and kind != "comparison":
        raise StorageError(f"'{path}': 'network': expected an object, found null.")
