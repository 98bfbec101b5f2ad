"""Figures of accuracy and cost over thresholds, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leenet_fx.report.plots import BLUE, GREEN, ORANGE
from leenet_fx.report.svg import FONT, WIDTH, svg_style, to_svg

RING: dict[str, Any] = {
    "marker": "o",
    "ls": "none",
    "ms": 11,
    "mfc": "none",
    "mec": ORANGE,
    "mew": 2.2,
}
"""Style of the marker around the point in use."""


@dataclass(frozen=True)
class Reference:
    """What figures draw beside a curve; accuracies in %.

    Attributes:
        backbone: accuracy of the backbone.
        accuracy: accuracy of the network as evaluated.
        flops: its mean FLOPs, relative to the backbone.
        threshold: the threshold in use, if it is the same at all exits.
        allowed: lowest accuracy within the accuracy drop that was asked for; None if none was.
        drop: that drop in percentage points.
        name: of the point in use.
    """

    backbone: float
    accuracy: float
    flops: float
    threshold: float | None
    allowed: float | None
    drop: float | None
    name: str


def reference(evaluation: Mapping[str, Any]) -> Reference:
    """Return what is drawn beside the curve of an evaluation.

    Args:
        evaluation: `Evaluation.to_dict()` with a curve.
    """
    curve, point = evaluation["curve"], evaluation.get("operating_point")
    thresholds = set(curve["thresholds"])
    common = thresholds.pop() if len(thresholds) == 1 else math.inf
    backbone = 100 * evaluation["backbone_accuracy"]
    drop = None
    if point is not None and point["target"] == "max_drop":
        drop = 100 * point["limit"]
    name = "in use" if curve["thresholds"] else "in use: early exits disabled"
    if point is not None:
        name = f"operating point {point['name']}"
    return Reference(
        backbone=backbone,
        accuracy=100 * evaluation["accuracy"],
        flops=evaluation["relative_flops"],
        threshold=common if math.isfinite(common) else None,
        allowed=None if drop is None else backbone - drop,
        drop=drop,
        name=name,
    )


def tradeoff_of_thresholds(evaluation: Mapping[str, Any], name: str) -> str:
    """Plot accuracy against FLOPs over all thresholds, with the point in use.

    Args:
        evaluation: `Evaluation.to_dict()` with a curve.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    points, drawn = evaluation["curve"]["points"], reference(evaluation)
    with svg_style(name) as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
        axes.plot(
            [point["relative_flops"] for point in points],
            [100 * point["accuracy"] for point in points],
            "o-",
            color=BLUE,
            ms=3,
            label="one threshold for all exits",
        )
        _draw_levels(axes, drawn)
        axes.plot([1.0], [drawn.backbone], "D", color=GREEN, ms=8, label="backbone")
        axes.plot([drawn.flops], [drawn.accuracy], label=drawn.name, **RING)
        axes.set(xlabel="mean FLOPs, relative to the backbone", ylabel="accuracy, %")
        axes.margins(0.06, 0.08)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper left", frameon=False)
        return to_svg(figure, "Accuracy against FLOPs over all thresholds, with the point in use")


def over_thresholds(evaluation: Mapping[str, Any], name: str) -> str:
    """Plot accuracy and FLOPs against the threshold, with the one in use.

    Args:
        evaluation: `Evaluation.to_dict()` with a curve.
        name: unique name of the figure on the page.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    curve, drawn = evaluation["curve"], reference(evaluation)
    points = [point for point in curve["points"] if math.isfinite(point["threshold"])]
    thresholds = [point["threshold"] for point in points]
    with svg_style(name) as plt:
        figure, (above, below) = plt.subplots(
            2, figsize=(WIDTH, 4.8), sharex=True, layout="constrained"
        )
        above.plot(thresholds, [100 * p["accuracy"] for p in points], "o-", color=BLUE, ms=3)
        below.plot(thresholds, [p["relative_flops"] for p in points], "o-", color=BLUE, ms=3)
        _draw_levels(above, drawn)
        below.axhline(1.0, color=GREEN, lw=1.2, ls="-.")
        for axes, value in ((above, drawn.accuracy), (below, drawn.flops)):
            if drawn.threshold is None:
                axes.axhline(value, color=ORANGE, lw=1.2, ls=":")
            else:
                axes.axvline(drawn.threshold, color=ORANGE, lw=1, ls=":")
                axes.plot([drawn.threshold], [value], **RING)
            axes.margins(0.04, 0.1)
            axes.grid(alpha=0.3)
        above.set_title("accuracy, %", loc="left", fontsize=FONT)
        below.set_title("FLOPs, relative", loc="left", fontsize=FONT)
        side = "at or above" if curve["confident_above"] else "at or below"
        below.set_xlabel(f"threshold ({curve['policy']}): samples exit {side} it")
        return to_svg(figure, "Accuracy and FLOPs against the threshold, with the one in use")


def _draw_levels(axes: Any, drawn: Reference) -> None:
    """Draw the accuracy of the backbone and the lowest that is allowed."""
    axes.axhline(drawn.backbone, color=GREEN, lw=1.2, ls="-.")
    if drawn.allowed is not None:
        axes.axhline(
            drawn.allowed, color=ORANGE, lw=1.2, ls="--", label=f"allowed drop: {drawn.drop:g} pt"
        )
