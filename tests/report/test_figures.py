"""Figures of frontiers and of exits, drawn from hand-made results."""

from xml.etree import ElementTree

import pytest
from drawings import comparison, drawn_words

from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.report.exit_figures import exit_distribution, exit_distribution_by_class, mean_exit
from leenet_fx.report.frontier_figures import bands, frontiers, highlights


def test_five_frontiers_are_named_and_all_are_drawn():
    values = comparison().to_dict()
    together, apart = (
        ElementTree.fromstring(draw(values, "figure")) for draw in (frontiers, highlights)
    )
    words = drawn_words(together)
    assert {"<b>best</b>", "b", "c", "d", "e", "1 other", "backbone"} <= set(words)
    assert not {"f", "no points"} & set(words)
    titles = [word for word in drawn_words(apart) if word in ("<b>best</b>", *"bcdef")]
    assert titles == ["<b>best</b>", *"bcdef"]
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in (together, apart))


def test_backbone_alone_is_drawn_without_operating_points():
    values = comparison(labels=("no points",)).to_dict()
    words = drawn_words(ElementTree.fromstring(frontiers(values, "figure")))
    assert "backbone" in words
    assert "no points" not in words
    assert drawn_words(ElementTree.fromstring(highlights(values, "figure")))


def test_bands_are_running_maxima_with_linear_interpolation():
    def run(seed, *points):
        made = tuple(FrontierPoint(x, y, x, (1.0,)) for x, y in points)
        return MethodRun("a", "ztw", seed, "threshold", 0.9, ("b",), 1.0, made, "")

    runs = (
        run(0, (0.6, 0.7), (0.2, 0.5), (0.4, 0.4), (0.8, 0.9)),
        run(1, (0.4, 0.8), (0.6, 0.6)),
    )
    found = bands(Comparison("net", 0.9, 40, 5, runs).to_dict())["a"]
    assert found.flops == [0.4, 0.6, 0.8]
    assert found.low == pytest.approx([50, 70, 80])
    assert found.high == pytest.approx([80, 80, 90])
    assert found.middle == pytest.approx([65, 75, 85])


def test_exit_distributions_are_shares_in_percent():
    evaluation = {
        "exits": [{"share": 0.25}, {"share": 0.0}, {"share": 0.75}],
        "classes": [
            {"label": 0, "samples": 4, "exit_counts": [0, 0, 4]},
            {"label": 1, "samples": 4, "exit_counts": [2, 0, 2]},
        ],
    }
    assert [mean_exit(row) for row in evaluation["classes"]] == [2, 1]
    words = drawn_words(ElementTree.fromstring(exit_distribution(evaluation, "all")))
    assert {"25", "0", "75", "final"} <= set(words)
    svg = ElementTree.fromstring(exit_distribution_by_class(evaluation, ["cat"], "by-class"))
    # The class without a name has its index; the lowest mean exit is first.
    names = [word for word in drawn_words(svg) if word in ("cat", "1")]
    assert names == ["1", "cat"]
