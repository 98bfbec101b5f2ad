"""Results of the speed benchmark are read in both schemas."""

import importlib.util
import json
from pathlib import Path

import pytest

_path = Path(__file__).parent.parent / "benchmarks" / "speed_report.py"
_spec = importlib.util.spec_from_file_location("speed_report", _path)
report = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(report)

ROW = {
    "network": "resnet18",
    "batch": 32,
    "threads": 1,
    "plain_ms": 2.0,
    "none over plain and branches": 1.01,
    "ours mix over pieces": 1.03,
    "ours mix over predicted": 0.95,
}


def test_keys_of_schema_1_are_renamed():
    row = report.upgrade(ROW)
    assert row["backbone_ms"] == 2.0
    assert row["none over backbone and branches"] == 1.01
    assert row["ours mix over stages"] == 1.03
    assert report.upgrade(row) == row
    (memory,) = report.upgrade([{"plain, MB": 1.0, "behind the first exit, 0.5": 0.7}])
    assert memory == {"backbone, MB": 1.0, "after the first exit, 0.5": 0.7}


def test_criteria_compare_measurements_with_targets():
    criteria = {
        text: (value, met)
        for text, value, met in (
            (one.name, one.value, one.met)
            for one in report._criteria_of_cells([report.upgrade(ROW)])
        )
    }
    assert criteria["resnet18, batch size 32, no early exits, over backbone + branches"] == (
        1.01,
        True,
    )
    assert criteria["predicted latency, median error"] == (pytest.approx(0.05), True)


def test_the_committed_results_are_read(tmp_path, monkeypatch):
    parts = {}
    for row in json.loads(report.RESULT.read_text())["rows"]:
        parts.setdefault(row.pop("part"), []).append(row)
    for part, stem in (("cells", "cell"), ("compiled", "compiled"), ("stream", "stream")):
        for number, row in enumerate(parts[part]):
            (tmp_path / f"{stem}-{number}.json").write_text(json.dumps(row))
    for part in ("memory", "decision"):
        (tmp_path / f"{part}.json").write_text(json.dumps(parts[part]))
    (tmp_path / "start.json").write_text(json.dumps(parts["start"][0]))
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "RESULT", tmp_path / "speed.json")
    report.write(list(dict.fromkeys(row["network"] for row in parts["cells"])))
    written = json.loads((tmp_path / "speed.json").read_text())
    assert len(written["rows"]) == sum(map(len, parts.values()))
    assert (tmp_path / "speed.png").stat().st_size > 10_000
