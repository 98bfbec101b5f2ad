"""Interactive charts, which show the values of a point under the pointer.

Each is the JSON of a Bokeh figure. The page shows the SVG of the same data until scripts run, so
that it reads without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leenet_fx.report.frontier_figures import STYLES, bands, limits
from leenet_fx.report.plots import BLUE, GREEN, GREY, ORANGE
from leenet_fx.report.svg import shorten
from leenet_fx.report.threshold_figures import reference
from leenet_fx.tables import percent

INSTALL = "pip install 'leenet-fx[plot]'"
"""How to get the library."""

MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "inverted_triangle"}

DASHES = {"-": "solid", "--": "dashed", "-.": "dashdot", ":": "dotted"}

FONT = "13px"

HEIGHT = 400
"""Height of a chart in pixels; its width is that of the page."""


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: in the legend.
        x: horizontal positions.
        y: vertical positions.
        values: one row per point of texts that appear under the pointer, by name.
        colour: as `#rrggbb`.
        line: x and y of the line through them; None without one.
        marker: Bokeh's name.
        dash: Bokeh's name of the line's pattern.
        size: of markers, in pixels.
        filled: whether markers are.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[Mapping[str, str]]
    colour: str
    line: tuple[Sequence[float], Sequence[float]] | None = None
    marker: str = "circle"
    dash: str | Sequence[int] = "solid"
    size: int = 6
    filled: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal or vertical line over the whole chart."""

    value: float
    colour: str
    dash: str
    vertical: bool = False


def available() -> bool:
    """Return whether the library is installed."""
    try:
        import bokeh.embed  # noqa: F401
    except ImportError:
        return False
    return True


def library() -> str:
    """Return the JavaScript of the library, to be inlined once per page."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def chart(
    series: Sequence[Series],
    levels: Sequence[Level],
    *,
    labels: tuple[str, str],
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> str:
    """Return a chart as JSON that is safe inside a script element.

    Args:
        series: what is drawn, the first at the back.
        levels: lines behind it.
        labels: of the two axes.
        ranges: lowest and highest value of each axis; None takes those of the data.
    """
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem, Span
    from bokeh.plotting import figure

    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_label=labels[0],
        y_axis_label=labels[1],
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color="#777777",
    )
    if ranges is not None:
        (plot.x_range.start, plot.x_range.end), (plot.y_range.start, plot.y_range.end) = ranges
    for axis in plot.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = FONT
        axis.axis_label_text_color = axis.major_label_text_color = "#1c1c1c"
        axis.minor_tick_line_color = None
    for level in levels:
        plot.add_layout(
            Span(
                location=level.value,
                dimension="height" if level.vertical else "width",
                line_color=level.colour,
                line_dash=level.dash,
                line_width=1.2,
            )
        )
    items = []
    for one in series:
        columns: dict[str, list[Any]] = {"x": list(one.x), "y": list(one.y)}
        names = list(one.values[0]) if one.values else []
        for place, name in enumerate(names):
            columns[f"value{place}"] = [row[name] for row in one.values]
        source = ColumnDataSource(columns)
        drawn = []
        if one.line is not None:
            x, y = map(list, one.line)
            drawn.append(plot.line(x, y, color=one.colour, line_width=2, line_dash=one.dash))
        points = plot.scatter(
            "x",
            "y",
            source=source,
            marker=one.marker,
            size=one.size,
            color=one.colour,
            line_width=2 if not one.filled else 1,
            fill_alpha=1.0 if one.filled else 0.0,
        )
        tooltips = [(name, f"@value{place}") for place, name in enumerate(names)]
        hover = HoverTool(renderers=[points], tooltips=tooltips, point_policy="snap_to_data")
        plot.add_tools(hover)
        items.append(LegendItem(label=one.name, renderers=[*drawn, points]))
    legend = Legend(items=items, border_line_alpha=0, background_fill_alpha=0, padding=0)
    legend.label_text_font_size = FONT
    legend.label_text_color = "#1c1c1c"
    legend.click_policy = "hide"
    legend.location = "top_left"
    legend.margin = 4
    legend.spacing = 2
    if len(items) > 4:
        legend.ncols, legend.spacing = 2, 10
    plot.add_layout(legend, "above")
    text = json.dumps(json_item(plot), ensure_ascii=True, allow_nan=False)
    # A class or method may be called "</script>".
    return text.replace("<", "\\u003c")


def threshold_chart(evaluation: Mapping[str, Any]) -> str | None:
    """Return accuracy against FLOPs over all thresholds; None if no threshold was varied.

    Args:
        evaluation: `Evaluation.to_dict()`.
    """
    if evaluation.get("curve") is None:
        return None
    points, drawn = evaluation["curve"]["points"], reference(evaluation)
    flops = [point["relative_flops"] for point in points]
    accuracy = [100 * point["accuracy"] for point in points]
    in_use = {
        "point": drawn.name,
        "threshold": _thresholds(evaluation["curve"]["thresholds"]),
        **_values(evaluation["accuracy"], evaluation["relative_flops"], evaluation["time_ratio"]),
    }
    levels = [Level(drawn.backbone, GREEN, "dashdot")]
    if drawn.allowed is not None:
        levels.append(Level(drawn.allowed, ORANGE, "dashed"))
    return chart(
        [
            Series(
                "one threshold for all exits",
                flops,
                accuracy,
                [
                    {
                        "threshold": _threshold(point["threshold"]),
                        **_values(
                            point["accuracy"], point["relative_flops"], point["relative_seconds"]
                        ),
                    }
                    for point in points
                ],
                BLUE,
                line=(flops, accuracy),
                size=7,
            ),
            _backbone(evaluation["backbone_accuracy"]),
            Series(
                drawn.name,
                [drawn.flops],
                [drawn.accuracy],
                [in_use],
                ORANGE,
                size=14,
                filled=False,
            ),
        ],
        levels,
        labels=("mean FLOPs, relative to the backbone", "accuracy, %"),
    )


def sweep_chart(sweep: Mapping[str, Any]) -> str:
    """Return accuracy against FLOPs: one point for each α.

    Args:
        sweep: `Sweep.to_dict()` with its `medians`.
    """
    rows = sorted(sweep["medians"], key=lambda row: row["relative_flops"])
    flops = [row["relative_flops"] for row in rows]
    accuracy = [100 * row["accuracy"] for row in rows]
    random_accuracy = [100 * row["random_accuracy"] for row in rows]
    values = [
        {
            "α": f"{row['alpha']:g}",
            **_values(row["accuracy"], row["relative_flops"], row["time_ratio"]),
        }
        for row in rows
    ]
    at_random = [
        {
            "α": f"{row['alpha']:g}",
            **_values(row["random_accuracy"], row["relative_flops"], None),
        }
        for row in rows
    ]
    return chart(
        [
            Series(
                "random exiting at the same exit rates",
                flops,
                random_accuracy,
                at_random,
                GREY,
                line=(flops, random_accuracy),
                marker="square",
                dash="dashed",
            ),
            Series(
                "early exits",
                flops,
                accuracy,
                values,
                BLUE,
                line=(flops, accuracy),
                size=8,
            ),
            _backbone(sweep["backbone_accuracy"]),
        ],
        [Level(100 * sweep["backbone_accuracy"], GREEN, "dashdot")],
        labels=("mean FLOPs, relative to the backbone", "accuracy, %"),
    )


def comparison_chart(comparison: Mapping[str, Any]) -> str:
    """Return the operating points of the methods with the largest areas.

    Args:
        comparison: `Comparison.to_dict()`.
    """
    backbone = 100 * comparison["backbone_accuracy"]
    by_label = bands(comparison)
    series = []
    for (label, band), style in zip(by_label.items(), STYLES, strict=False):
        runs = [run for run in comparison["runs"] if run["label"] == label]
        points = sorted(
            ((point, run) for run in runs for point in run["points"]),
            key=lambda pair: float(pair[0]["relative_flops"]),
        )
        series.append(
            Series(
                shorten(label),
                [point["relative_flops"] for point, _ in points],
                [100 * point["accuracy"] for point, _ in points],
                [
                    {
                        "method": label,
                        run["trade_off"].replace("_", " "): f"{point['value']:.4g}",
                        **_values(point["accuracy"], point["relative_flops"], None),
                        "seed": str(run["seed"]),
                    }
                    for point, run in points
                ],
                style["color"],
                line=(band.flops, band.middle),
                dash=DASHES.get(style["ls"], "solid"),
                marker=MARKERS[style["marker"]],
                size=8,
            )
        )
    return chart(
        [*series, _backbone(comparison["backbone_accuracy"])],
        [Level(backbone, GREEN, "dashdot")],
        labels=("mean FLOPs, relative to the backbone", "accuracy, %"),
        ranges=limits(by_label, backbone),
    )


def _backbone(accuracy: float) -> Series:
    values = {"point": "backbone", **_values(accuracy, 1.0, 1.0)}
    return Series("backbone", [1.0], [100 * accuracy], [values], GREEN, marker="diamond", size=12)


def _values(accuracy: float, flops: float, seconds: float | None) -> dict[str, str]:
    """Return the texts of what every operating point has."""
    measured = seconds is not None and math.isfinite(seconds)
    return {
        "accuracy": f"{percent(accuracy)} %",
        "FLOPs, relative": f"{flops:.3f}",
        "time, relative": f"{seconds:.2f}" if measured else "not measured",
    }


def _threshold(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no early exits"


def _thresholds(values: Sequence[float]) -> str:
    if not values:
        return "no early exits"
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))
