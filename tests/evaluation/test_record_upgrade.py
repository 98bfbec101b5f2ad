"""Records of schema 1, written by an earlier version, in the current schema."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from leenet_fx import StorageError
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.evaluate import Evaluation
from leenet_fx.evaluation.exit_statistics import ClassStatistics, ExitStatistics
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.evaluation.sweep import Sweep, SweepPoint
from leenet_fx.evaluation.upgrade import SCHEMA, upgrade_record

STORED = Path(__file__).parents[1] / "stored" / "schema1"


def stored(kind):
    return json.loads((STORED / f"{kind}.json").read_text())


def names(kind):
    return {field.name for field in fields(kind)}


def numbers(value):
    """All numbers in a JSON value, in its order."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def required(kind):
    return {
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }


def test_evaluation_has_the_current_names():
    old = stored("evaluation")
    record = upgrade_record(old, "evaluation.json")
    evaluation = record["evaluation"]
    # What later versions added has a default.
    assert required(Evaluation) <= set(evaluation) <= names(Evaluation) | {"time_ratio"}
    for row in evaluation["exits"]:
        assert required(ExitStatistics) <= set(row) <= names(ExitStatistics)
    assert all(set(row) == names(ClassStatistics) for row in evaluation["classes"])
    examples = [example for row in evaluation["exits"] for example in row["examples"]]
    assert examples
    assert all(set(example) == {"index", "label", "predicted"} for example in examples)
    images = [image for row in record["images"] for image in row]
    assert all(set(image) == {"src", "label", "predicted", "correct"} for image in images)
    assert record["config"]["split"] == "test"
    assert record["network"]["tracer"] == "fx"
    assert record["network"]["rejected"] == {}
    assert evaluation["backbone_accuracy"] == old["evaluation"]["plain_accuracy"]


def test_sweep_has_the_current_names():
    old = stored("sweep")
    sweep = upgrade_record(old, "sweep.json")["sweep"]
    assert set(sweep) == names(Sweep) | {"medians"}
    assert all(set(point) == names(SweepPoint) for point in sweep["points"])
    assert sweep["exit_flops"] == old["sweep"]["outlet_flops"]


def test_comparison_has_the_current_names():
    old = stored("comparison")
    record = upgrade_record(old, "comparison.json")
    comparison = record["comparison"]
    assert set(comparison) == names(Comparison) | {"rows"}
    for run in comparison["runs"]:
        assert set(run) == names(MethodRun)
        assert all(set(point) == names(FrontierPoint) for point in run["points"])
    trade_offs = {run["label"]: run["trade_off"] for run in comparison["runs"]}
    assert trade_offs == {
        "leenet": "cost_weight",
        "leenet-dial": "alpha",
        "msdnet": "exit_shares",
        "pabee": "patience",
        "shallow-deep": "threshold",
    }
    assert record["other_runs"] == []
    assert record["fingerprint"]["backbone"] == old["made_of"]["backbone"]


@pytest.mark.parametrize("kind", ["evaluation", "sweep", "comparison"])
def test_upgrade_changes_names_only(kind):
    old = stored(kind)
    upgraded = upgrade_record(old, f"{kind}.json")
    assert upgraded["schema"] == SCHEMA
    assert numbers({**upgraded, "schema": 1}) == numbers(old)
    assert old == stored(kind)
    assert upgrade_record(upgraded, f"{kind}.json") == upgraded


@pytest.mark.parametrize("schema", [0, 3, None, "2"])
def test_other_schemas_are_rejected(schema):
    with pytest.raises(StorageError, match=r"'a\.json' has schema .*; expected 1 or 2"):
        upgrade_record({"schema": schema}, "a.json")
