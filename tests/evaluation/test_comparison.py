"""Rows and table of a comparison."""

import statistics

import pytest
from comparisons import method_run, point

import leenet_fx
from leenet_fx.evaluation.comparison import Comparison


def test_rows_are_medians_over_seeds_with_the_largest_area_first():
    runs = [
        method_run([point(0.5, 0.8 + 0.02 * seed), point(0.7 + 0.1 * seed, 0.9)], "late", seed)
        for seed in range(3)
    ]
    runs += [method_run([point(0.2 + 0.1 * seed, 0.88)], "early", seed) for seed in range(2)]
    comparison = Comparison("net", 0.9, 40, 10, tuple(runs))
    early, late = comparison.rows()
    assert (early["label"], late["label"]) == ("early", "late")
    assert (early["seeds"], late["seeds"]) == (2, 3)
    assert early["flops_at_0"] is None
    assert early["flops_at_3"] == pytest.approx(0.25)
    assert early["accuracy_at_0.3"] == 0.88
    # One of its seeds has no point there, so there is no median.
    assert late["accuracy_at_0.4"] is None
    assert late["flops_at_0"] == pytest.approx(0.8)
    assert late["accuracy_at_0.5"] == pytest.approx(0.82)
    for row in (early, late):
        areas = [run.area(10, 0.9) for run in runs if run.label == row["label"]]
        assert row["areas"] == areas
        assert row["area"] == statistics.median(areas)


def test_table_fits_a_terminal():
    labels = [*leenet_fx.list_methods(), "leenet, gate on all features"]
    runs = [method_run([point(0.3 + 0.02 * i, 0.9)], label) for i, label in enumerate(labels)]
    reason = "Method 'pteenet' needs features (B, C, H, W), but these are (B, 64, 192) of tokens."
    skipped = {"p": reason}
    name = "examples/cifar_resnet.py:resnet20"
    text = str(Comparison(name, 0.9, 5000, 10, tuple(runs), skipped))
    assert max(map(len, text.splitlines())) <= 80
    assert "backbone 90.00 %" in text
    assert all(label in text for label in leenet_fx.list_methods())
    assert " ".join(f"Skipped: p: {reason}".split()) in " ".join(text.split())


def test_a_frontier_without_a_cheap_end_is_named():
    runs = [
        method_run([point(0.3, 0.8), point(0.7, 0.9)], "cheap"),
        method_run([point(0.45, 0.8)], "nearly"),
        method_run([point(0.85, 0.9), point(0.95, 0.9)], "dear"),
    ]
    comparison = Comparison("net", 0.9, 40, 10, tuple(runs))
    assert [row["cheapest_flops"] for row in comparison.rows()] == [0.3, 0.45, 0.85]
    text = " ".join(str(comparison).split())
    assert "No cheap end: dear (from 0.85). Below their cheapest operating point, the area" in text
    assert "No cheap end" not in str(Comparison("net", 0.9, 40, 10, tuple(runs[:2])))
