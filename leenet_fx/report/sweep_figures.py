"""Figures of a sweep over α, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leenet_fx.report.labels import label_points
from leenet_fx.report.plots import BLUE, GREEN, GREY
from leenet_fx.report.svg import FONT, WIDTH, svg_style, to_svg


def tradeoff(sweep: Mapping[str, Any], name: str) -> str:
    """Plot accuracy against FLOPs: one point for each α, with its range over the seeds.

    Args:
        sweep: `Sweep.to_dict()` with its `medians`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows = sorted(sweep["medians"], key=lambda row: row["relative_flops"])
    flops = [row["relative_flops"] for row in rows]
    accuracy = [100 * row["accuracy"] for row in rows]
    random_accuracy = [100 * row["random_accuracy"] for row in rows]
    backbone_accuracy = 100 * sweep["backbone_accuracy"]
    with svg_style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
        axes.axhline(backbone_accuracy, color=GREEN, lw=0.8)
        random_line = axes.plot(flops, random_accuracy, "s--", color=GREY, ms=4)[0]
        adaptive_line = axes.errorbar(
            flops,
            accuracy,
            xerr=_error_bars(rows, "relative_flops", "flops", 1),
            yerr=_error_bars(rows, "accuracy", "accuracy", 100),
            fmt="o-",
            color=BLUE,
            ms=5,
            capsize=2,
            elinewidth=1,
        )
        backbone_point = axes.plot([1.0], [backbone_accuracy], "D", color=GREEN, ms=8)[0]
        over = "" if max(row["seeds"] for row in rows) == 1 else ": median, range over seeds"
        figure.legend(
            [adaptive_line, random_line, backbone_point],
            [f"early exits{over}", "random exiting at the same exit rates", "backbone"],
            loc="outside upper left",
            frameon=False,
        )
        axes.set(xlabel="mean FLOPs, relative to the backbone", ylabel="accuracy, %")
        axes.margins(0.12, 0.12)
        axes.grid(alpha=0.3)
        label_points(
            axes,
            [*zip(flops, accuracy, strict=True)],
            [f"α={row['alpha']:g}" for row in rows],
            order=(0, *range(len(rows) - 1, 0, -1)),
            extents=[(100 * row["accuracy_low"], 100 * row["accuracy_high"]) for row in rows],
        )
        return to_svg(figure, "Accuracy against FLOPs for each α, with the backbone")


def trends(sweep: Mapping[str, Any], name: str) -> str:
    """Plot accuracy, mean exit, time and FLOPs over α, accuracy and FLOPs with their ranges.

    Time is not plotted if it was not measured.

    Args:
        sweep: `Sweep.to_dict()` with its `medians`.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    rows = sweep["medians"]
    panels: list[tuple[str, str, float, float | None]] = [
        ("accuracy", "accuracy, %", 100, 100 * sweep["backbone_accuracy"]),
        ("mean_exit", "mean exit", 1, None),
        ("time_ratio", "time, relative", 1, 1.0),
        ("relative_flops", "FLOPs, relative", 1, 1.0),
    ]
    ranges = {"accuracy": "accuracy", "relative_flops": "flops"}
    panels = [panel for panel in panels if any(row[panel[0]] is not None for row in rows)]
    with svg_style(name) as plt:
        figure, grid = plt.subplots(
            len(panels),
            figsize=(WIDTH, 0.8 + 1.35 * len(panels)),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        for axes, (key, title, scale, reference) in zip(grid[:, 0], panels, strict=True):
            measured = [row for row in rows if row[key] is not None]
            alphas = [row["alpha"] for row in measured]
            axes.plot(alphas, [scale * row[key] for row in measured], "o-", color=BLUE, ms=4)
            if key in ranges:
                ends = [
                    [scale * row[f"{ranges[key]}_{end}"] for row in measured]
                    for end in ("low", "high")
                ]
                axes.fill_between(alphas, *ends, color=BLUE, alpha=0.25, lw=0)
            if reference is not None:
                axes.axhline(reference, color=GREEN, lw=1.2, ls="-.", label="backbone")
            axes.set_title(title, loc="left", fontsize=FONT)
            axes.margins(y=0.15)
            axes.grid(alpha=0.3)
        grid[0, 0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.5, 0.96))
        grid[-1, 0].set_xlabel("α, cost weight")
        return to_svg(figure, f"Over α: {'; '.join(panel[1] for panel in panels)}")


def _error_bars(
    rows: Sequence[Mapping[str, Any]], middle: str, ends: str, scale: float
) -> list[list[float]]:
    """Return the lengths of error bars to both sides."""
    return [
        [scale * (row[middle] - row[f"{ends}_low"]) for row in rows],
        [scale * (row[f"{ends}_high"] - row[middle]) for row in rows],
    ]
