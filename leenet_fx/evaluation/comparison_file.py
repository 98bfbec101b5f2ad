"""comparison.json: the runs that a comparison resumes from, and the record of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leenet_fx.errors import StorageError
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import MethodRun
from leenet_fx.evaluation.upgrade import SCHEMA, upgrade_record
from leenet_fx.storage.files import make_folder, write_atomically
from leenet_fx.storage.fingerprint import backbone_digest
from leenet_fx.storage.json_files import read_json, to_json, validated
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


@dataclass(frozen=True)
class _Fingerprint:
    """The network and the images of a comparison."""

    backbone: str
    image_shape: tuple[int, ...]
    classes: int
    samples: int
    backbone_accuracy: float


@dataclass(frozen=True)
class _Runs:
    runs: tuple[MethodRun, ...]


@dataclass(frozen=True)
class _Record:
    """What of a file is needed to resume it."""

    comparison: _Runs
    other_runs: tuple[MethodRun, ...]
    fingerprint: _Fingerprint


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

    def runs_of(self, labels: Sequence[str], seed: int, key: str) -> tuple[MethodRun, ...]:
        """Return the runs with these labels, or none if one is missing or has other settings.

        Args:
            labels: of the runs of one spec.
            seed: random seed.
            key: their settings.
        """
        found = [self.runs.get((label, seed)) for label in labels]
        matching = tuple(run for run in found if run is not None and run.key == key)
        return matching if len(matching) == len(labels) else ()

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
        write_atomically(self.path, to_json(record, indent=1))

    def _read(self) -> None:
        record = read_json(self.path)
        if not isinstance(record, dict):
            raise StorageError(f"'{self.path}' is no comparison that can be resumed.")
        saved = validated(_Record, upgrade_record(record, self.path), self.path)
        runs = (*saved.comparison.runs, *saved.other_runs)
        self.runs = {(run.label, run.seed): run for run in runs}
        fingerprint = {**asdict(saved.fingerprint), "image_shape": [*saved.fingerprint.image_shape]}
        accuracy = saved.fingerprint.backbone_accuracy
        expected = self._fingerprint["backbone_accuracy"]
        if abs(accuracy - expected) <= ACCURACY_TOLERANCE:
            fingerprint["backbone_accuracy"] = expected
        for name, value in self._fingerprint.items():
            if fingerprint.get(name) != value:
                raise StorageError(
                    f"'{self.path}' belongs to another network or other images, with "
                    f"{name} {fingerprint.get(name)}, not {value}: choose another folder."
                )
