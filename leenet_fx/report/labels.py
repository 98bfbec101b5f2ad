"""Labels of points that cover nothing, and stand nearer to their point than to any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

PLACES = (
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((-7, 0), "right", "center"),
    ((7, 0), "left", "center"),
    ((-5, 5), "right", "bottom"),
    ((5, -5), "left", "top"),
    ((5, 5), "left", "bottom"),
    ((-5, -5), "right", "top"),
)
"""Offset in points and alignments of a label, in the order in which places are tried."""

NEARER = 1.5
"""How many times farther than from its own point a label is from every other point."""


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    order: Iterable[int] | None = None,
    extents: Sequence[tuple[float, float]] | None = None,
    style: dict[int, dict[str, Any]] | None = None,
) -> list[int]:
    """Label points where there is room, and return the indices of those that have a label.

    The figure is drawn and its layout is fixed, so that sizes are known: call it last.

    Args:
        axes: axes that the points are drawn on.
        points: (x, y) in the coordinates of the data.
        labels: one per point.
        order: indices of points, those first that are most worth a label.
        extents: lowest and highest y that is drawn for each point, such as an error bar.
        style: properties of the text of some labels, by index.
    """
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.canvas.draw()
    figure.set_layout_engine("none")
    lines = [
        line.get_path().transformed(line.get_transform())
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]
    places = [tuple(axes.transData.transform(point)) for point in points]
    spans = extents or [(y, y) for _, y in points]
    bars = [
        Bbox(axes.transData.transform([(x, low), (x, high)])).padded(4)
        for (x, _), (low, high) in zip(points, spans, strict=True)
    ]
    occupied = list(bars)
    if axes.get_legend() is not None:
        occupied.append(axes.get_legend().get_window_extent())
    labelled = []
    for index in order if order is not None else range(len(points)):
        x = points[index][0]
        for (right, up), horizontal, vertical in PLACES:
            y = spans[index][0 if vertical == "top" else 1]
            label = axes.annotate(
                labels[index],
                (x, y if vertical != "center" else points[index][1]),
                (right, up),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                **(style or {}).get(index, {}),
            )
            box = label.get_window_extent()
            own = _distance(box, bars[index], places[index])
            free = (
                axes.bbox.x0 < box.x0
                and box.x1 < axes.bbox.x1
                and axes.bbox.y0 < box.y0
                and box.y1 < axes.bbox.y1
                and not any(box.overlaps(other) for other in occupied)
                and not any(line.intersects_bbox(box, filled=False) for line in lines)
                and all(
                    _distance(box, bars[other], places[other]) > NEARER * own
                    for other in range(len(points))
                    if places[other] != places[index]
                )
            )
            if free:
                occupied.append(box.padded(2))
                labelled.append(index)
                break
            label.remove()
    return labelled


def _distance(box: Any, bar: Any, point: tuple[float, float]) -> float:
    """Return the distance in pixels from a label to a point with its error bar."""
    across = max(box.x0 - point[0], point[0] - box.x1, 0.0)
    up = max(box.y0 - bar.y1, bar.y0 - box.y1, 0.0)
    return max(math.hypot(across, up), 1.0)
