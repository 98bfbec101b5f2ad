"""Figures of a comparison of methods, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE
from leenet_fx.report.svg import FONT, LONGEST_LABEL, WIDTH, shorten, svg_style, to_svg

STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "ls": "-", "marker": "o"},
    {"color": ORANGE, "ls": "--", "marker": "s"},
    {"color": GREEN, "ls": "-.", "marker": "^"},
    {"color": "#CC79A7", "ls": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    {"color": "#222222", "ls": ":", "marker": "v"},
)
"""Styles of the methods with the largest areas, which differ in line and marker as well."""

LARGEST_DROP = 0.1
"""Accuracy drop that figures of frontiers are cut off at."""

MOST_FLOPS = 1.25
"""Relative FLOPs that figures of frontiers are cut off at."""

LONGEST_METHOD = 25
"""Largest number of letters in the title of a panel."""


@dataclass(frozen=True)
class Band:
    """The frontier of a method, over its seeds.

    Attributes:
        flops: increasing relative FLOPs for which every seed has a frontier.
        middle: median accuracy over the seeds in %.
        low: lowest accuracy in %.
        high: highest accuracy in %.
    """

    flops: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def bands(comparison: Mapping[str, Any]) -> dict[str, Band]:
    """Return frontiers by label, largest area first, of the methods with operating points.

    The frontier of a seed is the running maximum of the accuracy over increasing FLOPs, linear
    between the points, and constant beyond the last one.

    Args:
        comparison: `Comparison.to_dict()`.
    """
    import numpy as np

    frontier = {}
    for row in comparison["rows"]:
        runs = [run["points"] for run in comparison["runs"] if run["label"] == row["label"]]
        if not all(runs):
            continue
        seeds = []
        for points in runs:
            ordered = sorted((p["relative_flops"], 100 * p["accuracy"]) for p in points)
            flops, accuracies = np.array(ordered).T
            seeds.append((flops, np.maximum.accumulate(accuracies)))
        # All corners of all seeds: between them every frontier is linear.
        start = max(flops[0] for flops, _ in seeds)
        grid = np.unique(np.concatenate([flops for flops, _ in seeds]))
        grid = grid[grid >= start]
        heights = np.array([np.interp(grid, *seed) for seed in seeds])
        frontier[row["label"]] = Band(
            grid.tolist(),
            np.median(heights, 0).tolist(),
            heights.min(0).tolist(),
            heights.max(0).tolist(),
        )
    return frontier


def frontiers(comparison: Mapping[str, Any], name: str) -> str:
    """Plot the frontiers of all methods, with colours and names for the largest areas.

    Args:
        comparison: `Comparison.to_dict()`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    by_label = bands(comparison)
    named = dict(zip(by_label, STYLES, strict=False))
    backbone_accuracy = 100 * comparison["backbone_accuracy"]
    with svg_style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 5.8), layout="constrained")
        handles, labels = [], []
        for index, (label, style) in enumerate(named.items()):
            band = by_label[label]
            colour = style["color"]
            axes.fill_between(band.flops, band.low, band.high, color=colour, alpha=0.15, lw=0)
            # The markers of different methods are staggered.
            every = max(1, len(band.flops) // 8)
            handles += axes.plot(
                *(band.flops, band.middle),
                **{"lw": 1.6, "ms": 5, "markevery": (index * every // len(STYLES), every), **style},
            )
            labels.append(label)
        others = [band for label, band in by_label.items() if label not in named]
        for index, band in enumerate(others):
            line = axes.plot(band.flops, band.middle, color=GREY, lw=0.8, zorder=1)
            if index == 0:
                handles += line
                labels.append(f"{len(others)} other{'s' * (len(others) > 1)}")
        axes.axhline(backbone_accuracy, color=GREEN, lw=0.8)
        handles += axes.plot([1.0], [backbone_accuracy], "D", color=GREEN, ms=8)
        labels.append("backbone")
        _set_limits(axes, by_label, backbone_accuracy)
        axes.set(xlabel="mean FLOPs, relative to the backbone", ylabel="accuracy, %")
        columns = 2 if max(map(len, labels)) <= LONGEST_LABEL else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
        return to_svg(figure, "Accuracy against FLOPs: the frontier of each method")


def highlights(comparison: Mapping[str, Any], name: str) -> str:
    """Plot the frontier of each method in its own panel, with the others in grey.

    Args:
        comparison: `Comparison.to_dict()`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    by_label = bands(comparison)
    backbone_accuracy = 100 * comparison["backbone_accuracy"]
    rows = max(1, math.ceil(len(by_label) / 2))
    with svg_style(name) as plt:
        figure, grid = plt.subplots(
            rows,
            2,
            figsize=(WIDTH, 0.6 + 1.4 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (label, band) in zip(grid.flat, by_label.items(), strict=False):
            for other in by_label.values():
                axes.plot(other.flops, other.middle, color=GREY, lw=0.5, alpha=0.8)
            axes.fill_between(band.flops, band.low, band.high, color=BLUE, alpha=0.3, lw=0)
            axes.plot(band.flops, band.middle, "o-", color=BLUE, lw=2, ms=4, markevery=[0])
            axes.axhline(backbone_accuracy, color=GREEN, lw=0.8)
            axes.set_title(shorten(label, LONGEST_METHOD), loc="left", fontsize=FONT - 1)
            _set_limits(axes, by_label, backbone_accuracy)
            axes.locator_params(axis="x", nbins=4)
            right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
            corners = zip(band.flops, band.high, strict=True)
            if not any(flops <= right and height >= bottom for flops, height in corners):
                axes.text(0.6, 0.1, "below", ha="center", color=BLUE, transform=axes.transAxes)
        for axes in grid.flat[len(by_label) :]:
            axes.set_axis_off()
            grid[rows - 2, 1].tick_params(labelbottom=True)
        figure.supxlabel("mean FLOPs, relative to the backbone", fontsize=FONT)
        figure.supylabel("accuracy, %", fontsize=FONT)
        return to_svg(figure, "The frontier of each method, with the others in grey")


def limits(
    by_label: Mapping[str, Band], backbone_accuracy: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ranges of FLOPs and of accuracy in %, cut off at the largest accuracy drop.

    Args:
        by_label: frontiers.
        backbone_accuracy: accuracy of the backbone in %.
    """
    lowest = min([backbone_accuracy, *(value for band in by_label.values() for value in band.low)])
    highest = max([backbone_accuracy, *(band.high[-1] for band in by_label.values())])
    bottom = max(lowest, backbone_accuracy - 100 * LARGEST_DROP)
    margin = max(0.05 * (highest - bottom), 0.1)
    visible = [
        flops
        for band in by_label.values()
        for flops, height in zip(band.flops, band.high, strict=True)
        if height >= bottom
    ]
    left, right = min([1.0, *visible]), min(max([1.0, *visible]), MOST_FLOPS)
    margin_across = max(0.04 * (right - left), 0.005)
    return (left - margin_across, right + margin_across), (bottom - margin, highest + 1.5 * margin)


def _set_limits(axes: Any, by_label: Mapping[str, Band], backbone_accuracy: float) -> None:
    across, up = limits(by_label, backbone_accuracy)
    axes.set(xlim=across, ylim=up)
    axes.grid(alpha=0.3)
