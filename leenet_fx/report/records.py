"""Records: what a verb measured, as JSON that reports are written from."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leenet_fx.errors import InputError, StorageError
from leenet_fx.evaluation import compare
from leenet_fx.evaluation.evaluate import Evaluation
from leenet_fx.evaluation.sweep import Sweep
from leenet_fx.report.results import environment
from leenet_fx.storage.files import check_free, read_text, write_atomically
from leenet_fx.surgery.module import EarlyExitModule, device_of

SCHEMA = 1
FILES = {"comparison": compare.FILE, "sweep": "sweep.json", "evaluation": "evaluation.json"}
"""Of each kind, in the order that a page shows them."""

THUMBNAIL = 96
"""Largest side of a sample image, in pixels."""


def describe_network(ee: EarlyExitModule) -> dict[str, Any]:
    """Where exits are and what each costs: the JSON of `leenet-fx inspect`."""
    spec, profile = ee.spec, ee.spec.profile
    return {
        **ee.costs.to_dict(),
        "strategy": spec.placement.strategy,
        "branch": spec.branch,
        "image_shape": list(spec.image_shape),
        "captured": spec.tracer,
        "num_classes": spec.num_classes,
        "placement": list(spec.placement.names),
        "candidates": [
            {**asdict(candidate), "relative_flops": share}
            for candidate, share in zip(profile.candidates, profile.shares, strict=True)
        ],
        "refused": spec.rejected,
    }


def make_record(
    found: Evaluation | Sweep,
    ee: EarlyExitModule,
    *,
    command: str,
    config: Mapping[str, Any],
    classes: Sequence[str],
    images: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """One record.

    Args:
        found: what was measured.
        ee: the network.
        command: what to type to get it again.
        config: the resolved options.
        classes: names of the classes.
        images: sample images of each outlet, as `sample_images` makes them.
    """
    kind = "evaluation" if isinstance(found, Evaluation) else "sweep"
    measured = found.to_dict()
    if isinstance(found, Sweep):
        measured["medians"] = found.medians()
    return {
        "kind": kind,
        "schema": SCHEMA,
        **make_frame(ee, command=command, config=config, classes=classes),
        "images": None if images is None else [list(row) for row in images],
        kind: measured,
    }


def make_frame(
    ee: EarlyExitModule, *, command: str, config: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """What every record says besides what was measured; `compare` takes it as its `frame`.

    Args:
        ee: the network.
        command: what to type to get it again.
        config: the resolved options.
        classes: names of the classes.
    """
    return {
        "command": command,
        "environment": environment(device_of(ee).type),
        "config": dict(config),
        "network": describe_network(ee),
        "classes": list(classes),
    }


def sample_images(
    found: Evaluation, pictures: Any, classes: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """The examples an evaluation names, small, as data URIs: one list an outlet.

    Args:
        found: the evaluation.
        pictures: by position (PIL image, label), the images that were evaluated.
        classes: names of the classes.
    """
    return [
        [
            {
                "src": _data_uri(pictures[example.position][0]),
                "label": classes[example.label],
                "answer": classes[example.answer],
                "right": example.label == example.answer,
            }
            for example in outlet.examples
        ]
        for outlet in found.outlets
    ]


def write_record(folder: Path, record: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Writes `evaluation.json` or `sweep.json`.

    Raises:
        StorageError: it exists already, or cannot be written.
    """
    path = folder / FILES[str(record["kind"])]
    check_free(path, overwrite)
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records in a folder, in the order comparison, sweep, evaluation.

    Raises:
        InputError: there is none.
        StorageError: one is damaged.
    """
    found = []
    for kind, name in FILES.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            record = json.loads(read_text(path))
        except ValueError as error:
            raise StorageError(f"'{path}' is not JSON: {error}.") from error
        if not isinstance(record, dict) or record.get("kind") != kind:
            raise StorageError(f"'{path}' is no record of kind '{kind}'.")
        found.append(record)
    if not found:
        raise InputError(f"'{folder}' has neither {' nor '.join(FILES.values())}.")
    return found


def _data_uri(image: Any) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
