"""Reliability diagrams, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from leenet_fx.calibration.intervals import share_interval
from leenet_fx.evaluation.reliability import ReliabilityBin, expected_calibration_error
from leenet_fx.report.plots import BLUE, GREY, ORANGE
from leenet_fx.report.svg import FONT, WIDTH, svg_style, to_svg
from leenet_fx.tables import percent

MOST_PANELS = 8
"""Number of exits above which only some have a diagram."""

COUNTS = 0.25
"""Part of the height of a diagram that the largest bin's number of images takes."""

LEVEL = 0.95
"""Confidence level of the intervals on a page."""


def reliability(evaluation: Mapping[str, Any], name: str) -> str:
    """Plot accuracy against confidence in bins, for each exit and at the exit taken.

    Args:
        evaluation: `Evaluation.to_dict()` with bins.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    panels = diagrams(evaluation)
    rows = math.ceil(len(panels) / 2)
    bins = [row for _, found in panels for row in found["reliability"]]
    left = min(row["low"] for row in bins)
    intervals = [bin_interval(row) for row in bins]
    bottom = min(left, *(low for low, _ in intervals))
    with svg_style(name) as plt:
        figure, grid = plt.subplots(
            rows,
            2,
            figsize=(WIDTH, 0.6 + 2.0 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (title, found) in zip(grid.flat, panels, strict=False):
            _draw(axes, found["reliability"])
            before = found.get("undivided") or ()
            if before:
                _draw_undivided(axes, before)
            error = percent(found["calibration_error"], 1)
            if before:
                error = f"{percent(_error(before), 1)} → {error}"
            numbers = f"ECE {error} %\nAUROC {percent(found['auroc'], 1)} %"
            axes.set_title(f"{title}\n{numbers}", loc="left", fontsize=FONT - 2)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
            grid[rows - 2, 1].tick_params(labelbottom=True)
        margin = 0.03 * (1 - bottom)
        grid[0, 0].set(xlim=(left, 1.0), ylim=(bottom - margin, 1 + margin))
        figure.supxlabel("confidence", fontsize=FONT)
        figure.supylabel("accuracy", fontsize=FONT)
        return to_svg(figure, "Reliability diagrams: accuracy against confidence for each exit")


def diagrams(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (title, statistics) of the exits with a diagram, and of the exit taken.

    Args:
        evaluation: `Evaluation.to_dict()` with bins.
    """
    exits: Sequence[Mapping[str, Any]] = evaluation["exits"]
    last = len(exits) - 1
    shown = list(range(len(exits)))
    if len(shown) > MOST_PANELS - 1:
        step = last / (MOST_PANELS - 2)
        shown = sorted({round(step * place) for place in range(MOST_PANELS - 1)})
    named = [("final" if index == last else f"exit {index}", exits[index]) for index in shown]
    return [*named, ("overall (adaptive)", evaluation)]


def bin_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the interval of the accuracy of a bin: Wilson's, at `LEVEL`.

    Args:
        row: with `count` and `correct`.
    """
    found = share_interval(row["correct"], row["count"], LEVEL)
    return found.low, found.high


def _error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    return expected_calibration_error(tuple(ReliabilityBin(**row) for row in bins))


def _draw_undivided(axes: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    accuracies = [row["correct"] / row["count"] for row in bins]
    axes.plot([row["confidence"] for row in bins], accuracies, color=ORANGE, lw=1, marker=".", ms=3)


def _draw(axes: Any, bins: Sequence[Mapping[str, Any]]) -> None:
    largest = max(row["count"] for row in bins)
    for row in bins:
        axes.bar(
            row["low"],
            COUNTS * row["count"] / largest,
            row["high"] - row["low"],
            align="edge",
            color=GREY,
            alpha=0.45,
            lw=0,
            transform=axes.get_xaxis_transform(),
        )
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    accuracies = [row["correct"] / row["count"] for row in bins]
    intervals = [bin_interval(row) for row in bins]
    below = [value - low for value, (low, _) in zip(accuracies, intervals, strict=True)]
    above = [high - value for value, (_, high) in zip(accuracies, intervals, strict=True)]
    axes.errorbar(
        [row["confidence"] for row in bins],
        accuracies,
        # Rounding may leave an end on the wrong side of the estimate.
        yerr=[[max(value, 0.0) for value in below], [max(value, 0.0) for value in above]],
        fmt="o-",
        color=BLUE,
        ms=3.5,
        lw=1.2,
        elinewidth=0.9,
        capsize=1.5,
    )
    axes.grid(alpha=0.3)
