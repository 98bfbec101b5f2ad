"""A sample of all models, another each day, through the checks of the coverage sweep."""

import importlib.util
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from torch import nn

import leenet_fx

_path = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
_spec = importlib.util.spec_from_file_location("benchmarks_coverage", _path)
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)

FAMILIES_A_DAY = 24
MOST_PARAMS = 40_000_000


def sample(day):
    """One verified model of each of the day's families, none that takes long."""
    rows = json.loads(coverage.RESULTS.read_text())["rows"]
    families = {}
    for row in rows:
        quick = row["verified"] and row["params"] <= MOST_PARAMS and row["check_s"] <= 10
        if quick:
            families.setdefault(row["family"], []).append(row["name"])
    names = sorted(families)
    first = day * FAMILIES_A_DAY
    random = Random(day)
    return [
        random.choice(families[names[(first + offset) % len(names)]])
        for offset in range(min(FAMILIES_A_DAY, len(names)))
    ]


DAY = int(os.environ.get("LEENET_FX_SAMPLE_DAY", datetime.now(UTC).timetuple().tm_yday))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sample(DAY), ids=lambda name: f"day{DAY}-{name}")
def test_a_model_of_the_day(name):
    coverage.quiet()
    row = coverage.check(name)
    assert row["verified"], row["failure"]
    assert row["candidates"] >= 2


def test_the_committed_sweep_is_of_all_models():
    rows = json.loads(coverage.RESULTS.read_text())["rows"]
    known = {row["name"] for row in rows}
    missing = set(leenet_fx.list_models()) - known
    # Another version of timm or torchvision may have more models than were checked.
    assert len(missing) < 0.2 * len(known)
    for library, share in (("torchvision/", 1.0), ("timm/", 0.995)):
        verified = [row["verified"] for row in rows if row["name"].startswith(library)]
        assert sum(verified) >= share * len(verified)
    assert all(row["verified"] or row["failure"] for row in rows)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_have_exits_is_not_verified(monkeypatch):
    class Whole(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    monkeypatch.setattr(leenet_fx, "create_model", lambda *_, **__: Whole())
    row = coverage.check("timm/whole")
    assert not row["verified"]
    assert "Whole" in row["failure"]
