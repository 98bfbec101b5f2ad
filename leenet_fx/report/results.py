"""Results of benchmarks: their JSON form, and Markdown rendered from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leenet_fx.storage.files import write_atomically
from leenet_fx.storage.json_files import encode


@dataclass(frozen=True)
class Criterion:
    """A measured value with its target.

    Attributes:
        name: what is measured.
        value: the measured value.
        unit: its unit.
        target: the target, as text.
        met: whether the target is met.
    """

    name: str
    value: float
    unit: str
    target: str
    met: bool


@dataclass(frozen=True)
class Result:
    """Result of a benchmark.

    Attributes:
        command: command line that reproduces it.
        rows: measurements, one flat record each.
        criteria: measured values with targets.
        environment: versions, device, threads, date.
    """

    command: str
    rows: Sequence[dict[str, Any]]
    criteria: Sequence[Criterion]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: `command`, `environment`, `rows`, `criteria`."""
        return {
            "command": self.command,
            "environment": self.environment,
            "rows": list(self.rows),
            "criteria": [asdict(criterion) for criterion in self.criteria],
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON with one line per row."""
        values = encode(self.to_dict())
        rows = ",\n".join(
            f"    {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in values["rows"]
        )
        values["rows"] = []
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        if rows:
            text = text.replace('"rows": []', f'"rows": [\n{rows}\n  ]')
        return text + "\n"

    def to_markdown(self, title: str, table: Sequence[dict[str, Any]] | None = None) -> str:
        """Render criteria, rows and environment as Markdown.

        Args:
            title: heading.
            table: records to show instead of `rows`.
        """
        parts = [f"# {title}", f"`{self.command}`"]
        if self.criteria:
            criteria = [
                {
                    "criterion": criterion.name,
                    "value": f"{_format(criterion.value)} {criterion.unit}".strip(),
                    "target": criterion.target,
                    "met": criterion.met,
                }
                for criterion in self.criteria
            ]
            parts.append(_markdown_table(criteria))
        records = self.rows if table is None else table
        if records:
            parts.append(_markdown_table(records))
        parts.append(", ".join(f"{key} {value}" for key, value in self.environment.items()))
        return "\n\n".join(parts) + "\n"

    def write(self, path: Path, title: str, table: Sequence[dict[str, Any]] | None = None) -> None:
        """Write `path` (.json) and, next to it, the Markdown (.md).

        Args:
            path: path of the JSON file.
            title: heading of the Markdown.
            table: records that the Markdown shows instead of `rows`.
        """
        write_atomically(path, self.to_json())
        write_atomically(path.with_suffix(".md"), self.to_markdown(title, table))


def _markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    from tabulate import tabulate

    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [[_format(record.get(column, "")) for column in columns] for record in records]
    return tabulate(cells, columns, tablefmt="pipe", disable_numparse=True)


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_format(item) for item in value)
    return "" if value is None else str(value)
