"""Frontiers of accuracy and cost: operating points of a fitted method and what they reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class FrontierPoint:
    """An operating point, measured on the test split.

    Attributes:
        value: value of the trade-off parameter: a cost weight, a budget, a patience, or α.
        accuracy: overall accuracy (adaptive).
        relative_flops: mean FLOPs, relative to the backbone.
        shares: share of the samples at each exit and at the final classifier.
    """

    value: float
    accuracy: float
    relative_flops: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class MethodRun:
    """One method, fitted with one random seed.

    Attributes:
        label: label of the `MethodSpec`.
        method: name of the method.
        seed: random seed.
        trade_off: trade-off parameter that moves along the frontier.
        backbone_accuracy: accuracy of the final classifier after this run.
        exits: names of the blocks with exits.
        trained_seconds: training time.
        points: operating points.
        key: settings of the run as JSON; runs with equal keys and seeds are equal.
    """

    label: str
    method: str
    seed: int
    trade_off: str
    backbone_accuracy: float
    exits: tuple[str, ...]
    trained_seconds: float
    points: tuple[FrontierPoint, ...]
    key: str

    def accuracy_within(self, budget: float) -> float | None:
        """Return the best accuracy of the points that cost at most `budget`; None if none does.

        Args:
            budget: mean FLOPs, relative to the backbone.
        """
        reached = [p.accuracy for p in self.points if p.relative_flops <= budget + 1e-9]
        return max(reached, default=None)

    def flops_within(self, backbone_accuracy: float, drop: float) -> float | None:
        """Return the least relative FLOPs of the points within an accuracy drop; None if none is.

        Args:
            backbone_accuracy: accuracy of the backbone.
            drop: maximum accuracy drop.
        """
        lowest = backbone_accuracy - drop - 1e-9
        spent = [p.relative_flops for p in self.points if p.accuracy >= lowest]
        return min(spent, default=None)

    def area(self, classes: int, backbone_accuracy: float) -> float:
        """Return the area under the frontier; see `area_under_frontier`.

        Args:
            classes: number of classes.
            backbone_accuracy: accuracy of the backbone.
        """
        return area_under_frontier(self.points, classes, backbone_accuracy)


def area_under_frontier(
    points: Iterable[FrontierPoint], classes: int, backbone_accuracy: float
) -> float:
    """Return the area under the frontier over relative FLOPs from 0 to 1.

    The frontier is the upper concave hull of the points, of random guessing at no cost, and of the
    backbone: the best accuracy of a random mixture of these within each budget. It never decreases.

    Args:
        points: operating points; those above the backbone's cost are ignored.
        classes: number of classes.
        backbone_accuracy: accuracy of the backbone.
    """
    corners = [(0.0, 1 / classes), (1.0, backbone_accuracy)]
    corners += [(p.relative_flops, p.accuracy) for p in points if p.relative_flops <= 1]
    # A more accurate point is available to every larger budget.
    corners.append((1.0, max(accuracy for _, accuracy in corners)))
    hull: list[tuple[float, float]] = []
    for corner in sorted(corners):
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], corner):
            hull.pop()
        hull.append(corner)
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(hull))


def _is_below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Return whether b lies on or below the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])
