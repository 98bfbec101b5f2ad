"""Intervals of what `evaluate` measures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from leenet_fx.calibration.intervals import (
    mean_interval,
    paired_drop_interval,
    ratio_interval,
    share_interval,
)
from leenet_fx.evaluation.timing import BatchTimer
from leenet_fx.surgery.operating_point import Interval

LEVEL = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True)
class Intervals:
    """Estimates with their intervals, each of which holds at `level` by itself.

    Those of accuracy, drop and FLOPs are about other images of the same kind; those of time about
    other measurements on this device.

    Attributes:
        level: confidence level.
        accuracy: overall accuracy (Wilson).
        backbone_accuracy: accuracy of the backbone (Wilson).
        drop: backbone's accuracy less overall accuracy, on the same images (Agresti and Min).
        relative_flops: mean FLOPs, relative to the backbone (Student).
        seconds_per_image: of the network with exits (bootstrap); None if not measured.
        backbone_seconds_per_image: of the backbone.
        time_ratio: time relative to the backbone's (bootstrap over paired measurements).
        measurements: number of pairs of measurements of time.
    """

    level: float
    accuracy: Interval
    backbone_accuracy: Interval
    drop: Interval
    relative_flops: Interval
    seconds_per_image: Interval | None = None
    backbone_seconds_per_image: Interval | None = None
    time_ratio: Interval | None = None
    measurements: int = 0

    def summary(self) -> str:
        """Return the intervals as one sentence."""
        parts = [
            f"accuracy {_percent(self.accuracy)} %",
            f"backbone {_percent(self.backbone_accuracy)} %",
            f"drop {_percent(self.drop)} points",
            f"FLOPs {_percent(self.relative_flops, 1)} %",
        ]
        if self.time_ratio is not None:
            parts.append(
                f"time {_percent(self.time_ratio, 0)} % ({self.measurements} measurements)"
            )
        return f"{100 * self.level:g} % intervals: {', '.join(parts)}."


def find_intervals(
    correct: Tensor, backbone_correct: Tensor, costs: Tensor, timer: BatchTimer | None
) -> Intervals:
    """Return the intervals of an evaluation.

    Args:
        correct: (n,) bool, which samples are right at the exit taken.
        backbone_correct: (n,) bool, which samples the backbone has right.
        costs: (n,) FLOPs relative to the backbone.
        timer: measured times, if any.
    """
    samples = len(correct)
    found = Intervals(
        level=LEVEL,
        accuracy=share_interval(int(correct.sum()), samples, LEVEL),
        backbone_accuracy=share_interval(int(backbone_correct.sum()), samples, LEVEL),
        drop=paired_drop_interval(backbone_correct, correct, LEVEL),
        relative_flops=mean_interval(costs, LEVEL),
    )
    if timer is None:
        return found
    own, backbone = timer.pairs["ee"], timer.pairs["backbone"]
    return replace(
        found,
        seconds_per_image=ratio_interval(own, timer.counts, LEVEL),
        backbone_seconds_per_image=ratio_interval(backbone, timer.counts, LEVEL),
        time_ratio=ratio_interval(own, backbone, LEVEL),
        measurements=len(own),
    )


def _percent(interval: Interval, digits: int = 2) -> str:
    return f"{100 * interval.low:.{digits}f} to {100 * interval.high:.{digits}f}"
