"""The demo in its quick form."""

import json

import pytest
from typer.testing import CliRunner

from leenet_fx.cli import app


def test_quick_demo_writes_results_and_plots(tmp_path):
    result = CliRunner().invoke(app.app, ["demo", "--quick", "--output", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "demo.json").read_text())
    assert set(found) == {"command", "environment", "rows", "criteria"}
    assert json.loads(result.stdout) == found
    row = found["rows"][0]
    assert sum(row["shares"]) == pytest.approx(1)
    assert len(row["shares"]) == len(row["exit_flops"])
    assert {"name", "value", "unit", "target", "met"} == set(found["criteria"][0])
    for name in ("demo-network.png", "demo-tradeoff.png", "demo-exits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "| FLOPs saved " in (tmp_path / "demo.md").read_text()
    assert "final" in (tmp_path / "demo.txt").read_text()
