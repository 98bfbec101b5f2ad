"""Result files: one JSON form for every benchmark, and the Markdown rendered from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leenet_fx.environment import device_name
from leenet_fx.storage.files import write_atomically

LIBRARIES = ("leenet-fx", "torch", "torchvision", "timm", "networkx", "numpy")


@dataclass(frozen=True)
class Criterion:
    """A number that was asked for: name, value, unit, the request in words, whether it is met."""

    name: str
    value: float
    unit: str
    asked: str
    met: bool


@dataclass(frozen=True)
class Result:
    """What a benchmark leaves behind.

    Attributes:
        command: what to type to get it again.
        rows: the measurements, one flat record each.
        figures: what was asked for.
        environment: versions, device, threads, date.
    """

    command: str
    rows: Sequence[dict[str, Any]]
    figures: Sequence[Criterion]
    environment: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The one JSON form: `command`, `environment`, `rows`, `figures`."""
        return {
            "command": self.command,
            "environment": self.environment,
            "rows": list(self.rows),
            "figures": [asdict(figure) for figure in self.figures],
        }

    def to_json(self) -> str:
        """`to_dict` as text, a row a line."""
        parts = self.to_dict()
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in parts["rows"])
        parts["rows"] = []
        text = json.dumps(parts, indent=2, ensure_ascii=False)
        return (
            text.replace('"rows": []', f'"rows": [\n{rows}\n  ]' if rows else '"rows": []') + "\n"
        )

    def to_markdown(self, title: str, table: Sequence[dict[str, Any]] | None = None) -> str:
        """Figures, rows (or `table` in their place) and environment as Markdown tables."""
        parts = [f"# {title}", f"`{self.command}`"]
        if self.figures:
            rows = [
                {
                    "figure": f.name,
                    "value": f"{_number(f.value)} {f.unit}".strip(),
                    "asked": f.asked,
                    "met": "yes" if f.met else "no",
                }
                for f in self.figures
            ]
            parts.append(_markdown_table(rows))
        shown = self.rows if table is None else table
        if shown:
            parts.append(_markdown_table(shown))
        parts.append(", ".join(f"{key} {value}" for key, value in self.environment.items()))
        return "\n\n".join(parts) + "\n"

    def write(self, path: Path, title: str, table: Sequence[dict[str, Any]] | None = None) -> None:
        """Writes `path` (.json) and, beside it, the Markdown rendered from it, or from `table`."""
        write_atomically(path, self.to_json())
        write_atomically(path.with_suffix(".md"), self.to_markdown(title, table))


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, device, threads and date, as a bug report needs them."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["device"] = device_name(device)
    found["threads"] = torch.get_num_threads()
    found["date"] = datetime.now(UTC).date().isoformat()
    return found


def _markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_number(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_number(item) for item in value)
    return "" if value is None else str(value)
