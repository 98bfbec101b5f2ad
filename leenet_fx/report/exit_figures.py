"""Figures of exits: exit distributions, and the network with its exits, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from leenet_fx.report.plots import BLUE, draw_network
from leenet_fx.report.svg import FONT, WIDTH, shorten, svg_style, to_svg

ENDS = 10
"""Number of classes with the lowest, and with the highest, mean exit that are drawn of many."""

MOST_TICKS = 12
"""Number of exits above which only some are labelled."""

LONGEST_MODULE = 13
"""Largest number of letters of a module's name in half the width of a figure."""


def exit_distribution(evaluation: Mapping[str, Any], name: str) -> str:
    """Plot the share of the images at each exit and at the final classifier.

    Args:
        evaluation: `Evaluation.to_dict()`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    shares = [100 * row["share"] for row in evaluation["exits"]]
    last = len(shares) - 1
    step = math.ceil(len(shares) / MOST_TICKS)
    # The label "final" of the last tick is wide, so ticks next to it are dropped.
    ticks = [tick for tick in range(0, last, step) if last - tick >= step]
    with svg_style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        for index, (share, style) in enumerate(zip(shares, _styles(len(shares)), strict=True)):
            axes.bar(index, share, width=0.85, **style)
            if step == 1:
                axes.text(index, share, f"{share:.0f}", ha="center", va="bottom")
        axes.set(
            xticks=[*ticks, last],
            xticklabels=[*map(str, ticks), "final"],
            xlabel="exit",
            ylabel="share of all images, %",
        )
        axes.margins(x=0.02, y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        return to_svg(figure, "Exit distribution of all images")


def exit_distribution_by_class(
    evaluation: Mapping[str, Any], classes: Sequence[str], name: str
) -> str:
    """Plot the exit distribution of each class, in the order of the mean exit.

    Of more than 20 classes, the 10 with the lowest and the 10 with the highest mean exit are drawn.

    Args:
        evaluation: `Evaluation.to_dict()`.
        classes: names of the classes.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows = sorted(evaluation["classes"], key=mean_exit)
    places = list(range(len(rows)))
    title = "classes by increasing mean exit"
    cut = len(rows) > 2 * ENDS
    if cut:
        title = f"{ENDS} earliest and {ENDS} latest of {len(rows)} classes"
        rows = rows[:ENDS] + rows[-ENDS:]
        places = [*range(ENDS), *range(ENDS + 1, 2 * ENDS + 1)]
    styles = _styles(len(evaluation["exits"]))
    with svg_style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.26 * len(rows)), layout="constrained")
        for place, row in zip(places, rows, strict=True):
            start = 0.0
            for count, style in zip(row["exit_counts"], styles, strict=True):
                share = 100 * count / row["samples"]
                axes.barh(place, share, left=start, height=0.8, **style)
                start += share
        if cut:
            axes.text(50, ENDS, "…", ha="center", va="center")
        axes.set(
            xlim=(0, 100),
            ylim=(places[-1] + 0.5, -0.5),
            yticks=places,
            yticklabels=[shorten(class_name(classes, row["label"])) for row in rows],
            xlabel="share of the class, %",
        )
        figure.suptitle(title, fontsize=FONT)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        return to_svg(figure, f"Exit distribution of each class, {title}")


def network(description: Mapping[str, Any], name: str) -> str:
    """Plot the blocks along their cumulative FLOPs, with the exits and the cost at each.

    Args:
        description: the JSON of `leenet-fx inspect`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    shares = {at["name"]: at["relative_flops"] for at in description["candidates"]}
    places = [*description["placement"], None]
    exits = [
        (
            1.0 if place is None else shares[place],
            f"{'final' if place is None else f'{index}: {_shorten_module(place)}'}, "
            f"{row['relative_flops']:.3f}",
        )
        for index, (place, row) in enumerate(zip(places, description["exits"], strict=True))
    ]
    with svg_style(name) as plt:
        figure, axes = plt.subplots(layout="constrained")
        draw_network(axes, [*shares.values()], exits, width=WIDTH, fontsize=FONT, below_from=0.5)
        axes.set_xlabel("share of the backbone's FLOPs")
        return to_svg(figure, f"Blocks of {description['model']} and the exits after them")


def mean_exit(row: Mapping[str, Any]) -> float:
    """Return the mean exit index of a class.

    Args:
        row: `exit_counts`, the number of samples at each exit, and `samples`, their sum.
    """
    total: int = sum(index * count for index, count in enumerate(row["exit_counts"]))
    return total / float(row["samples"])


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the name of a class, or its index if it has no name."""
    return str(classes[label]) if label < len(classes) else str(label)


def _styles(count: int) -> list[dict[str, Any]]:
    """Return a style per exit, from light to dark so that the order is visible in grey too."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("exits", ["#b5d6ec", BLUE, "#00263d"])
    last = max(count - 1, 1)
    return [
        {
            "color": ramp(index / last),
            "edgecolor": "white",
            "linewidth": 0.6,
            "hatch": "////" if index % 2 else None,
        }
        for index in range(count)
    ]


def _shorten_module(name: str) -> str:
    """Return the end of a long module name: names of modules differ at their ends."""
    return name if len(name) <= LONGEST_MODULE else "…" + name[1 - LONGEST_MODULE :].lstrip(".")
