"""Figures of the report page, as SVG to stand inside HTML.

Text stays text, so that it can be searched and copied. Widths and font sizes are chosen so that a
figure is still readable on a telephone, where it shrinks to the width of the screen.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE, draw_network, pyplot

WIDTH = 4.8
"""Inches."""

FONT = 11.5
"""Points."""

ENDS = 10
"""Of many classes, so many that leave earliest are drawn, and so many that leave latest."""

LOOKS: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "ls": "-", "marker": "o"},
    {"color": ORANGE, "ls": "--", "marker": "s"},
    {"color": GREEN, "ls": "-.", "marker": "^"},
    {"color": "#CC79A7", "ls": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    {"color": "#222222", "ls": ":", "marker": "v"},
)
"""Of the methods with the largest areas; they differ in line and marker, not in colour alone."""

DEEPEST = 0.1
"""Accuracy below the plain model's that figures of frontiers show."""

LONGEST_CLASS = 20
LONGEST_METHOD = 25
LONGEST_MODULE = 13
"""Letters; labels of exits must find room in half a figure's width."""


def tradeoff(sweep: Mapping[str, Any], name: str) -> str:
    """Accuracy against FLOPs: one point for each α of a sweep, with its range over the seeds.

    Args:
        sweep: `Sweep.to_dict()` with its `medians`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows = sorted(sweep["medians"], key=lambda row: row["relative_flops"])
    cost = [row["relative_flops"] for row in rows]
    accuracy = [100 * row["accuracy"] for row in rows]
    plain = 100 * sweep["plain_accuracy"]
    with _style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
        axes.axhline(plain, color=GREEN, lw=0.8)
        random = [100 * row["random_accuracy"] for row in rows]
        at_random = axes.plot(cost, random, "s--", color=GREY, ms=4)[0]
        with_exits = axes.errorbar(
            cost,
            accuracy,
            xerr=_arms(rows, "relative_flops", "flops", 1),
            yerr=_arms(rows, "accuracy", "accuracy", 100),
            fmt="o-",
            color=BLUE,
            ms=5,
            capsize=2,
            elinewidth=1,
        )
        plain_model = axes.plot([1.0], [plain], "D", color=GREEN, ms=8)[0]
        over = "" if max(row["seeds"] for row in rows) == 1 else ": median, range over seeds"
        figure.legend(
            [with_exits, at_random, plain_model],
            [f"with exits{over}", "same shares at random", "plain model"],
            loc="outside upper left",
            frameon=False,
        )
        axes.set(xlabel="mean FLOPs, relative to the plain model", ylabel="accuracy, %")
        axes.margins(0.12, 0.12)
        axes.grid(alpha=0.3)
        _label_points(figure, axes, rows)
        return _svg(figure, "Accuracy against FLOPs for each α, beside the plain model")


def trends(sweep: Mapping[str, Any], name: str) -> str:
    """Accuracy, mean exit, time and FLOPs over α, with their ranges over the seeds.

    Time is left out where none was measured.

    Args:
        sweep: `Sweep.to_dict()` with its `medians`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows, points = sweep["medians"], sweep["points"]
    plain = 100 * sweep["plain_accuracy"]
    panels: list[tuple[str, str, float, float | None]] = [
        ("accuracy", "accuracy, %", 100, plain),
        ("mean_exit", "mean exit", 1, None),
        ("time_ratio", "time, relative", 1, 1.0),
        ("relative_flops", "FLOPs, relative", 1, 1.0),
    ]
    panels = [panel for panel in panels if any(row[panel[0]] is not None for row in rows)]
    with _style(name) as plt:
        figure, grid = plt.subplots(
            len(panels),
            figsize=(WIDTH, 0.8 + 1.35 * len(panels)),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (key, title, scale, reference) in zip(grid[:, 0], panels, strict=True):
            known = [row for row in rows if row[key] is not None]
            alphas = [row["alpha"] for row in known]
            axes.plot(alphas, [scale * row[key] for row in known], "o-", color=BLUE, ms=4)
            if key != "time_ratio":
                ranges = [
                    [scale * point[key] for point in points if point["alpha"] == alpha]
                    for alpha in alphas
                ]
                axes.fill_between(
                    alphas, [*map(min, ranges)], [*map(max, ranges)], color=BLUE, alpha=0.25, lw=0
                )
            if reference is not None:
                axes.axhline(reference, color=GREEN, lw=1.2, ls="-.", label="plain model")
            axes.set_title(title, loc="left", fontsize=FONT)
            axes.margins(y=0.15)
            axes.grid(alpha=0.3)
        grid[0, 0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.5, 0.96))
        grid[-1, 0].set_xlabel("α, weight of the cost")
        return _svg(figure, f"Over α: {'; '.join(panel[1] for panel in panels)}")


@dataclass(frozen=True)
class Band:
    """The frontier of a method, over its seeds.

    Attributes:
        cost: relative FLOPs, rising, where every seed has a frontier.
        middle, low, high: accuracy there in %: the median over seeds, the lowest, the highest.
    """

    cost: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def bands(comparison: Mapping[str, Any]) -> dict[str, Band]:
    """Frontiers by label, largest area first; a method without operating points has none.

    A seed's frontier is the best accuracy so far over its points in the order of their FLOPs,
    straight between them, and level behind the last one.

    Args:
        comparison: `Comparison.to_dict()`.
    """
    import numpy as np

    found = {}
    for row in comparison["rows"]:
        runs = [run["points"] for run in comparison["runs"] if run["label"] == row["label"]]
        if not all(runs):
            continue
        seeds = []
        for points in runs:
            ordered = sorted((p["relative_flops"], 100 * p["accuracy"]) for p in points)
            costs, accuracies = np.array(ordered).T
            seeds.append((costs, np.maximum.accumulate(accuracies)))
        # Every corner of every seed's, and the places between.
        start = max(costs[0] for costs, _ in seeds)
        grid = np.unique(np.concatenate([costs for costs, _ in seeds]))
        grid = grid[grid >= start]
        heights = np.array([np.interp(grid, *seed) for seed in seeds])
        found[row["label"]] = Band(
            grid.tolist(),
            np.median(heights, 0).tolist(),
            heights.min(0).tolist(),
            heights.max(0).tolist(),
        )
    return found


def frontiers(comparison: Mapping[str, Any], name: str) -> str:
    """Every method's frontier, those with the largest areas in colour and named.

    Args:
        comparison: `Comparison.to_dict()`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    found = bands(comparison)
    named = dict(zip(found, LOOKS, strict=False))
    plain = 100 * comparison["plain_accuracy"]
    with _style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 5.8), layout="constrained")
        handles, labels = [], []
        for turn, (label, look) in enumerate(named.items()):
            band = found[label]
            axes.fill_between(band.cost, band.low, band.high, color=look["color"], alpha=0.15, lw=0)
            # Markers stand where those of the other methods do not.
            every = max(1, len(band.cost) // 8)
            handles += axes.plot(
                *(band.cost, band.middle),
                **{"lw": 1.6, "ms": 5, "markevery": (turn * every // len(LOOKS), every), **look},
            )
            labels.append(label)
        others = [band for label, band in found.items() if label not in named]
        for turn, band in enumerate(others):
            line = axes.plot(band.cost, band.middle, color=GREY, lw=0.8, zorder=1)
            if turn == 0:
                handles += line
                labels.append(f"{len(others)} other{'s' * (len(others) > 1)}")
        axes.axhline(plain, color=GREEN, lw=0.8)
        handles += axes.plot([1.0], [plain], "D", color=GREEN, ms=8)
        labels.append("plain model")
        _frame(axes, found, plain)
        axes.set(xlabel="mean FLOPs, relative to the plain model", ylabel="accuracy, %")
        columns = 2 if max(map(len, labels)) <= LONGEST_CLASS else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
        return _svg(figure, "Accuracy against FLOPs: the frontier of each method")


def highlights(comparison: Mapping[str, Any], name: str) -> str:
    """Each method's frontier in a panel of its own, from its first point, over the others'.

    Args:
        comparison: `Comparison.to_dict()`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    found = bands(comparison)
    plain = 100 * comparison["plain_accuracy"]
    rows = max(1, math.ceil(len(found) / 2))
    with _style(name) as plt:
        figure, grid = plt.subplots(
            rows,
            2,
            figsize=(WIDTH, 0.6 + 1.4 * rows),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (label, band) in zip(grid.flat, found.items(), strict=False):
            for other in found.values():
                axes.plot(other.cost, other.middle, color=GREY, lw=0.5, alpha=0.8)
            axes.fill_between(band.cost, band.low, band.high, color=BLUE, alpha=0.3, lw=0)
            axes.plot(band.cost, band.middle, "o-", color=BLUE, lw=2, ms=4, markevery=[0])
            axes.axhline(plain, color=GREEN, lw=0.8)
            axes.set_title(_front(label, LONGEST_METHOD), loc="left", fontsize=FONT - 1)
            _frame(axes, found, plain)
            axes.set(xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
            right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
            seen = zip(band.cost, band.high, strict=True)
            if not any(cost <= right and height >= bottom for cost, height in seen):
                axes.text(0.6, 0.1, "below", ha="center", color=BLUE, transform=axes.transAxes)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
            grid[rows - 2, 1].tick_params(labelbottom=True)
        figure.supxlabel("mean FLOPs, relative to the plain model", fontsize=FONT)
        figure.supylabel("accuracy, %", fontsize=FONT)
        return _svg(figure, "The frontier of each method over those of the others")


def _frame(axes: Any, found: Mapping[str, Band], plain: float) -> None:
    """Limits of a figure of frontiers: what lies far below the plain model is cut off."""
    lowest = min([plain, *(height for band in found.values() for height in band.low)])
    highest = max([plain, *(band.high[-1] for band in found.values())])
    bottom = max(lowest, plain - 100 * DEEPEST)
    room = max(0.05 * (highest - bottom), 0.1)
    axes.set(xlim=(0, 1.04), ylim=(bottom - room, highest + 1.5 * room))
    axes.grid(alpha=0.3)


def departures(evaluation: Mapping[str, Any], name: str) -> str:
    """Shares of all images that leave at each outlet.

    Args:
        evaluation: `Evaluation.to_dict()`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    shares = [100 * outlet["share"] for outlet in evaluation["outlets"]]
    last = len(shares) - 1
    step = math.ceil(len(shares) / 12)
    # The last tick says "final" and needs the room of its neighbours.
    ticks = [tick for tick in range(0, last, step) if last - tick >= step]
    with _style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
        for index, (share, style) in enumerate(zip(shares, _looks(len(shares)), strict=True)):
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
        return _svg(figure, "Shares of all images that leave at each exit")


def departures_by_class(evaluation: Mapping[str, Any], classes: Sequence[str], name: str) -> str:
    """Shares of each class that leave at each outlet, classes that leave earliest first.

    Of more than 20 classes the 10 that leave earliest on average and the 10 latest are drawn.

    Args:
        evaluation: `Evaluation.to_dict()`.
        classes: names of the classes.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows = sorted(evaluation["classes"], key=mean_exit)
    places = list(range(len(rows)))
    title = "classes that leave earliest first"
    cut = len(rows) > 2 * ENDS
    if cut:
        title = f"{ENDS} earliest and {ENDS} latest of {len(rows)} classes"
        rows = rows[:ENDS] + rows[-ENDS:]
        places = [*range(ENDS), *range(ENDS + 1, 2 * ENDS + 1)]
    looks = _looks(len(evaluation["outlets"]))
    with _style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.26 * len(rows)), layout="constrained")
        for place, row in zip(places, rows, strict=True):
            start = 0.0
            for count, style in zip(row["left"], looks, strict=True):
                share = 100 * count / row["samples"]
                axes.barh(place, share, left=start, height=0.8, **style)
                start += share
        if cut:
            axes.text(50, ENDS, "…", ha="center", va="center")
        axes.set(
            xlim=(0, 100),
            ylim=(places[-1] + 0.5, -0.5),
            yticks=places,
            yticklabels=[_front(class_name(classes, row["label"])) for row in rows],
            xlabel="share of the class, %",
        )
        figure.suptitle(title, fontsize=FONT)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure, f"Shares of each class that leave at each exit, {title}")


def network(found: Mapping[str, Any], name: str) -> str:
    """The blocks along their cumulative FLOPs, the exits on them, and what leaving at each costs.

    Args:
        found: the JSON of `leenet-fx inspect`.
        name: unlike that of any other figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    shares = {at["name"]: at["relative_flops"] for at in found["candidates"]}
    exits = [
        (
            1.0 if place is None else shares[place],
            f"{'final' if place is None else f'{index}: {_tail(place)}'}, "
            f"{row['relative_flops']:.3f}",
        )
        for index, (place, row) in enumerate(
            zip([*found["placement"], None], found["exits"], strict=True)
        )
    ]
    with _style(name) as plt:
        figure, axes = plt.subplots(layout="constrained")
        draw_network(axes, [*shares.values()], exits, width=WIDTH, fontsize=FONT, hang_from=0.5)
        axes.set_xlabel("share of the plain model's FLOPs")
        return _svg(figure, f"Blocks of {found['model']} and the exits on them")


def mean_exit(row: Mapping[str, Any]) -> float:
    """Of one class: the mean index of the outlet its samples left at.

    Args:
        row: with `left`, the samples that left at each outlet, and `samples`, their sum.
    """
    total: int = sum(index * count for index, count in enumerate(row["left"]))
    return total / float(row["samples"])


def class_name(classes: Sequence[str], label: int) -> str:
    """A class's name; its number where it has none.

    Args:
        classes: the names.
        label: the class.
    """
    return str(classes[label]) if label < len(classes) else str(label)


def _looks(count: int) -> list[dict[str, Any]]:
    """One look an outlet, from light to dark so that the order shows in grey print too."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("outlets", ["#d3e7f5", BLUE, "#00263d"])
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


def _front(name: str, longest: int = LONGEST_CLASS) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _tail(name: str) -> str:
    """What stays of a module's name when it is long: names of modules differ at their ends."""
    return name if len(name) <= LONGEST_MODULE else "…" + name[1 - LONGEST_MODULE :].lstrip(".")


def _arms(
    rows: Sequence[Mapping[str, Any]], middle: str, ends: str, scale: float
) -> list[list[float]]:
    """Lengths of error bars to both sides."""
    return [
        [scale * (row[middle] - row[f"{ends}_low"]) for row in rows],
        [scale * (row[f"{ends}_high"] - row[middle]) for row in rows],
    ]


def _label_points(figure: Any, axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes α at the points, the ends first, wherever it covers no line, point or other label."""
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    figure.set_layout_engine("none")
    lines = [
        line.get_path().transformed(line.get_transform())
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    taken = []
    for row in rows:
        for keys in (("accuracy_low", "accuracy_high"), ("random_accuracy", "random_accuracy")):
            ends = [(row["relative_flops"], 100 * row[key]) for key in keys]
            taken.append(Bbox(axes.transData.transform(ends)).padded(5))
    for row in (rows[0], *rows[:0:-1]):
        for end, shift, across, along in (
            ("high", (0, 6), "center", "bottom"),
            ("low", (0, -6), "center", "top"),
            ("high", (-7, 0), "right", "center"),
            ("low", (7, 0), "left", "center"),
        ):
            label = axes.annotate(
                f"α={row['alpha']:g}",
                (row["relative_flops"], 100 * row[f"accuracy_{end}"]),
                shift,
                textcoords="offset points",
                ha=across,
                va=along,
            )
            box = label.get_window_extent()
            free = (
                axes.bbox.x0 < box.x0
                and box.x1 < axes.bbox.x1
                and not any(box.overlaps(other) for other in taken)
                and not any(line.intersects_bbox(box, filled=False) for line in lines)
            )
            if free:
                taken.append(box.padded(2))
                break
            label.remove()


@contextmanager
def _style(name: str) -> Iterator[Any]:
    """pyplot with what makes an SVG fit for a page; `name` keeps ids of several SVGs apart."""
    plt = pyplot()
    options = {
        "font.size": FONT,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "hatch.linewidth": 0.7,
        "axes.edgecolor": "#555555",
    }
    with plt.rc_context(options), warnings.catch_warnings():
        # Only the widths of such letters are guessed; the browser has the letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield plt


def _svg(figure: Any, label: str) -> str:
    """A figure as an `svg` element without fixed size, and closes the figure."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    pyplot().close(figure)
    text = buffer.getvalue()
    opening, rest = text[text.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    # Groups are numbered from 1 in every figure, and nothing refers to them.
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} role="img" aria-label="{escape(label)}">{rest}'
    )
