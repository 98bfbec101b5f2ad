"""Records: measurements and their metadata as JSON, which report pages are made from."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leenet_fx.environment import environment
from leenet_fx.errors import InputError, StorageError
from leenet_fx.evaluation import comparison_file
from leenet_fx.evaluation.evaluate import Evaluation
from leenet_fx.evaluation.sweep import Sweep
from leenet_fx.evaluation.upgrade import SCHEMA, upgrade_record
from leenet_fx.report.record_schema import check_form
from leenet_fx.storage.files import check_free, write_atomically
from leenet_fx.storage.json_files import read_json, to_json
from leenet_fx.surgery.module import EarlyExitModule

FILES = {
    "comparison": comparison_file.FILE,
    "sweep": "sweep.json",
    "evaluation": "evaluation.json",
}
"""File name of each kind of record, in the order of a page."""

THUMBNAIL = 96
"""Largest side of a sample image, in pixels."""


def describe_network(ee: EarlyExitModule) -> dict[str, Any]:
    """Return the exits, their costs and the candidates: the JSON of `leenet-fx inspect`."""
    spec, profile = ee.spec, ee.spec.profile
    return {
        **ee.costs.to_dict(),
        "strategy": spec.placement.strategy,
        "branch": spec.branch,
        "image_shape": list(spec.image_shape),
        "tracer": spec.tracer,
        "num_classes": spec.num_classes,
        "placement": list(spec.placement.names),
        "candidates": [
            {**asdict(candidate), "relative_flops": share}
            for candidate, share in zip(profile.candidates, profile.shares, strict=True)
        ],
        "rejected": spec.rejected,
    }


def make_record(
    result: Evaluation | Sweep,
    ee: EarlyExitModule,
    *,
    command: str,
    config: Mapping[str, Any],
    classes: Sequence[str],
    images: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Build the record of an evaluation or a sweep.

    Args:
        result: the measurements.
        ee: the network.
        command: command line that reproduces them.
        config: the resolved options.
        classes: names of the classes.
        images: sample images of each exit, from `sample_images`.
    """
    kind = "evaluation" if isinstance(result, Evaluation) else "sweep"
    values = result.to_dict()
    if isinstance(result, Sweep):
        values["medians"] = result.medians()
    return {
        "kind": kind,
        "schema": SCHEMA,
        **make_metadata(ee, command=command, config=config, classes=classes),
        "images": None if images is None else [list(row) for row in images],
        kind: values,
    }


def make_metadata(
    ee: EarlyExitModule, *, command: str, config: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, Any]:
    """Build the entries of a record besides the measurements; the `metadata` of `compare`.

    Args:
        ee: the network.
        command: command line that reproduces the measurements.
        config: the resolved options.
        classes: names of the classes.
    """
    return {
        "command": command,
        "environment": environment(ee.device.type),
        "config": dict(config),
        "network": describe_network(ee),
        "classes": list(classes),
    }


def sample_images(
    evaluation: Evaluation, dataset: Any, classes: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Return small images of the examples of an evaluation as data URIs, one list per exit.

    Args:
        evaluation: the evaluation.
        dataset: the evaluated data set; item i is (PIL image, label).
        classes: names of the classes.
    """
    return [
        [
            {
                "src": _data_uri(dataset[example.index][0]),
                "label": classes[example.label],
                "predicted": classes[example.predicted],
                "correct": example.label == example.predicted,
                "confidence": example.confidence,
            }
            for example in row.examples
        ]
        for row in evaluation.exits
    ]


def write_record(folder: Path, record: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Write `evaluation.json` or `sweep.json`, and return its path.

    Args:
        folder: where to write it.
        record: the record, from `make_record`.
        overwrite: whether to replace an existing file.

    Raises:
        StorageError: it exists already, or cannot be written.
    """
    path = folder / FILES[str(record["kind"])]
    check_free(path, overwrite)
    write_atomically(path, to_json(record, indent=1))
    return path


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the records in a folder, in the order comparison, sweep, evaluation.

    Records of schema 1 are upgraded.

    Raises:
        InputError: the folder has no records.
        StorageError: a file is damaged.
    """
    records = []
    for kind, name in FILES.items():
        path = folder / name
        if not path.exists():
            continue
        record = read_json(path)
        if not isinstance(record, dict) or record.get("kind") != kind:
            raise StorageError(f"'{path}' is not a record of kind '{kind}'.")
        records.append(upgrade_record(record, path))
        check_form(records[-1], kind, path)
    if not records:
        raise InputError(f"'{folder}' has neither {' nor '.join(FILES.values())}.")
    return records


def _data_uri(image: Any) -> str:
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
