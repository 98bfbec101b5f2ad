"""Validation of the records that a page is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leenet_fx.errors import InputError

KINDS = ("evaluation", "sweep", "comparison")

COMMON = ("kind", "command", "environment", "config", "network", "classes", "images")
"""Keys of every record, besides the key of its kind."""

KEYS = {
    "network": (
        *("model", "unit", "total", "exits", "candidates", "placement"),
        *("strategy", "branch", "image_shape", "num_classes"),
    ),
    "evaluation": (
        *("samples", "accuracy", "backbone_accuracy", "random_accuracy", "relative_flops"),
        *("mean_exit", "auroc", "calibration_error", "time_ratio", "seconds", "backbone_seconds"),
        *("exits", "classes", "timing"),
    ),
    "sweep": ("method", "cost", "backbone_accuracy", "samples", "exits", "points", "medians"),
    "comparison": ("model", "backbone_accuracy", "samples", "classes", "runs", "rows", "skipped"),
}
"""Keys of the parts of a record that a page reads."""


def check_record(record: object, where: str) -> None:
    """Raise InputError if an object is not a valid record.

    Args:
        record: the object.
        where: name of the record, for the message.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is a {type(record).__name__}; expected a dict.")
    kind = record.get("kind")
    if kind not in KINDS:
        raise InputError(f"{where} is of kind {kind!r}; expected {' or '.join(map(repr, KINDS))}.")
    _check_keys(record, (*COMMON, kind), where)
    # The network may be missing from a comparison made in Python.
    described = kind != "comparison" or record["network"] is not None
    for name in ("network", kind) if described else (kind,):
        part = f"{where}, {name}"
        if not isinstance(record[name], dict):
            raise InputError(f"{part}, is a {type(record[name]).__name__}; expected a dict.")
        _check_keys(record[name], KEYS[name], part)
    if kind == "sweep" and not record["sweep"]["medians"]:
        raise InputError(f"{where} is a sweep without points.")
    if kind == "comparison" and not record["comparison"]["rows"]:
        raise InputError(f"{where} is a comparison without runs.")
    if kind == "evaluation" and record["images"] is not None:
        _check_images(record["images"], len(record["evaluation"]["exits"]), where)


def _check_keys(values: Mapping[str, Any], expected: Sequence[str], where: str) -> None:
    missing = [key for key in expected if key not in values]
    if missing:
        found = ", ".join(map(str, values)) or "nothing"
        raise InputError(f"{where}, lacks {', '.join(missing)}; found {found}.")


def _check_images(images: Sequence[Sequence[Mapping[str, Any]]], exits: int, where: str) -> None:
    if len(images) != exits:
        raise InputError(f"{where} has images of {len(images)} exits; expected {exits}.")
    for image in (image for row in images for image in row):
        _check_keys(image, ("src", "label", "predicted", "correct"), f"{where}, an image")
        if not str(image["src"]).startswith("data:image/"):
            # A page with external images would not be self-contained.
            raise InputError(f"{where}: an image is at {image['src']!r}; expected a data: URI.")
