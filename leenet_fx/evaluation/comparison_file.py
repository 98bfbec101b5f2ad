"""comparison.json: the runs that a comparison resumes from, and the record of the report page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from leenet_fx.errors import StorageError
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.evaluation.upgrade import SCHEMA, upgrade_record
from leenet_fx.storage.files import make_folder, read_text, write_atomically
from leenet_fx.storage.fingerprint import backbone_digest
from leenet_fx.surgery.module import EarlyExitModule

FILE = "comparison.json"

ACCURACY_TOLERANCE = 0.005
"""Largest difference of a backbone's accuracies that different machines may measure."""

METADATA: Mapping[str, Any] = {
    "command": "leenet_fx.compare(…)",
    "environment": {},
    "config": {},
    "network": None,
    "classes": [],
    "images": None,
}
"""Metadata of a comparison for which none was passed."""


class ComparisonFile:
    """The file of a comparison.

    Attributes:
        path: path of the file.
        runs: its runs by label and seed, those of other comparisons on the same network included.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Any],
        base: EarlyExitModule,
        backbone_accuracy: float,
        samples: int,
    ) -> None:
        """Open a file, and read its runs if it exists.

        Args:
            path: path of the file.
            metadata: entries of the record besides the comparison itself.
            base: the network that is compared on.
            backbone_accuracy: accuracy of the backbone on the test split.
            samples: number of test images.

        Raises:
            StorageError: the folder cannot be written to; the file is damaged, or belongs to
                another network or other images.
        """
        self.path = path
        self.runs: dict[tuple[str, int], MethodRun] = {}
        self._metadata = {**METADATA, **metadata}
        self._fingerprint: dict[str, Any] = {
            "backbone": backbone_digest(base),
            "image_shape": list(base.spec.image_shape),
            "classes": base.spec.num_classes,
            "samples": samples,
            "backbone_accuracy": backbone_accuracy,
        }
        make_folder(path.parent)
        if path.exists():
            self._read()

    def write(self, comparison: Comparison) -> None:
        """Write the comparison, and the runs that are not part of it."""
        included = {(run.label, run.seed) for run in comparison.runs}
        record = {
            "kind": "comparison",
            "schema": SCHEMA,
            **self._metadata,
            "comparison": comparison.to_dict(),
            "fingerprint": self._fingerprint,
            "other_runs": [asdict(run) for key, run in self.runs.items() if key not in included],
        }
        write_atomically(self.path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _read(self) -> None:
        try:
            record = upgrade_record(json.loads(read_text(self.path)), self.path)
            runs = [*record["comparison"]["runs"], *record["other_runs"]]
            self.runs = {(run["label"], run["seed"]): _parse_run(run) for run in runs}
            fingerprint = dict(record["fingerprint"])
            accuracy = float(fingerprint["backbone_accuracy"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"'{self.path}' is no comparison that can be resumed: {error!r}."
            ) from error
        expected = self._fingerprint["backbone_accuracy"]
        if abs(accuracy - expected) <= ACCURACY_TOLERANCE:
            fingerprint["backbone_accuracy"] = expected
        for name, value in self._fingerprint.items():
            if fingerprint.get(name) != value:
                raise StorageError(
                    f"'{self.path}' belongs to another network or other images, with "
                    f"{name} {fingerprint.get(name)}, not {value}: choose another folder."
                )


def _parse_run(values: Mapping[str, Any]) -> MethodRun:
    """Build a run from its JSON values."""
    points = [FrontierPoint(**{**at, "shares": tuple(at["shares"])}) for at in values["points"]]
    return MethodRun(**{**values, "exits": tuple(values["exits"]), "points": tuple(points)})
