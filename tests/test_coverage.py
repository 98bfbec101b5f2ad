"""A sample of all models through the checks of the coverage sweep."""

import importlib.util
import json
import os
from pathlib import Path
from random import Random

import pytest
from torch import nn

import leenet_fx

_path = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
_spec = importlib.util.spec_from_file_location("benchmarks_coverage", _path)
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)

FAMILIES = 24
MAX_PARAMS = 40_000_000
SAMPLE = int(os.environ.get("LEENET_FX_SAMPLE", "0"))
"""Number of the sample; `make coverage-sample` selects another one."""


def quick_models():
    """Family → verified models that are not large and are checked in seconds."""
    families = {}
    for row in json.loads(coverage.RESULTS.read_text())["rows"]:
        if row["name"].startswith("hf/"):
            # An extra; a few architectures are among the tests.
            continue
        if row["verified"] and row["params"] <= MAX_PARAMS and row["check_s"] <= 10:
            families.setdefault(row["family"], []).append(row["name"])
    return families


def sample(number):
    """One model of each of `FAMILIES` families; the next number takes the next families."""
    families = quick_models()
    names = sorted(families)
    first = number * FAMILIES
    random = Random(number)
    return [
        random.choice(families[names[(first + offset) % len(names)]])
        for offset in range(min(FAMILIES, len(names)))
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sample(SAMPLE), ids=lambda name: f"sample{SAMPLE}-{name}")
def test_a_model_of_the_sample_is_verified(name):
    coverage.quiet()
    row = coverage.check(name)
    assert row["verified"], row["failure"]
    assert row["candidates"] >= 2


def test_samples_are_reproducible_and_consecutive_ones_cover_every_family():
    assert sample(0) == sample(0)
    families = quick_models()
    family = {name: key for key, names in families.items() for name in names}
    covered = {family[name] for number in range(4) for name in sample(number)}
    assert covered == set(families)


def test_the_committed_sweep_contains_all_models():
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
def test_a_model_without_block_boundary_is_not_verified(monkeypatch):
    class Whole(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10]

    monkeypatch.setattr(leenet_fx, "create_model", lambda *_, **__: Whole())
    row = coverage.check("timm/whole")
    assert not row["verified"]
    assert "Whole" in row["failure"]


def test_the_summary_reads_rows_of_both_schemas():
    row = {"name": "timm/a", "family": "timm/a", "verified": True, "candidates": 3}
    for tracer in ("captured", "tracer"):
        (summary,) = coverage.summarise([{**row, tracer: "export"}])
        assert summary["by export"] == 1
