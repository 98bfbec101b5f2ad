"""evaluate: accuracy, cost and time of a network with exits, compared with its backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx import tables
from leenet_fx.calibration.seen_images import (
    image_statistics,
    remember_evaluation,
    warn_if_calibrated,
    warn_if_fitted,
)
from leenet_fx.data.class_names import check_class_names
from leenet_fx.errors import InputError, ModeError
from leenet_fx.evaluation.exit_statistics import (
    ClassStatistics,
    ExitStatistics,
    class_statistics,
    exit_statistics,
)
from leenet_fx.evaluation.intervals import Intervals, find_intervals
from leenet_fx.evaluation.metrics import accuracy, auroc, calibration_error
from leenet_fx.evaluation.reliability import ReliabilityBin, reliability_bins
from leenet_fx.evaluation.sample_records import SampleRecords, concatenate, record_batch
from leenet_fx.evaluation.threshold_curve import (
    ThresholdCurve,
    curve_policy,
    operating_point_in_use,
    policy_confidence,
    threshold_curve,
)
from leenet_fx.evaluation.timing import BatchTimer, Timing, check_sizes
from leenet_fx.features.batches import batches, count_batches, count_images
from leenet_fx.policies import NeverExit
from leenet_fx.progress import track
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import OperatingPoint
from leenet_fx.training.sanity import warn_if_at_chance, warn_if_one_exit


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`. Every mean is over samples, not over batches.

    Attributes:
        samples: number of images.
        accuracy: overall accuracy (adaptive): of the network with exits under its policy.
        backbone_accuracy: accuracy of the backbone.
        random_accuracy: expected accuracy of random exiting at the same exit rates.
        relative_flops: mean FLOPs, relative to the backbone.
        mean_exit: mean exit index; N is the final classifier.
        auroc: AUROC of the confidence at the exit taken; None if all predictions are correct, or
            none is.
        calibration_error: expected calibration error at the exit taken, 15 bins.
        seconds: measured time of the network with exits on all images.
        backbone_seconds: measured time of the backbone in the same run.
        exits: statistics of the N exits and of the final classifier, which is last.
        classes: statistics of each class that occurs.
        timing: times on test sets of growing size; None if `sizes` was not given.
        intervals: of accuracy, cost and time; None in files of earlier versions.
        reliability: bins of the reliability diagram at the exit taken; empty in older records.
        undivided: the same at temperature 1; empty if the policy has no temperatures.
        curve: accuracy and cost against the threshold; None if the policy has none.
        operating_point: what `leenet_fx.calibrate` found, if its policy is in use.
    """

    samples: int
    accuracy: float
    backbone_accuracy: float
    random_accuracy: float
    relative_flops: float
    mean_exit: float
    auroc: float | None
    calibration_error: float | None
    seconds: float
    backbone_seconds: float
    exits: tuple[ExitStatistics, ...]
    classes: tuple[ClassStatistics, ...]
    timing: Timing | None = None
    intervals: Intervals | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    undivided: tuple[ReliabilityBin, ...] = ()
    curve: ThresholdCurve | None = None
    operating_point: OperatingPoint | None = None

    @property
    def time_ratio(self) -> float:
        """Measured time relative to the backbone."""
        return self.seconds / self.backbone_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {**asdict(self), "time_ratio": self.time_ratio}
        if self.timing is not None:
            values["timing"]["ratio"] = self.timing.ratio
        return values

    def summary(self) -> str:
        """Format the statistics of the exits as a plain-text table."""
        caption = "" if self.intervals is None else f"{self.intervals.summary()} "
        caption += (
            f"Mean exit {self.mean_exit:.2f}; time {self.seconds:.3f} s, backbone "
            f"{self.backbone_seconds:.3f} s. FLOPs: relative to the backbone; if all: accuracy % "
            "if all exit here; AUROC %: confidence as a detector of correct predictions (overall: "
            f"{tables.percent(self.auroc)}); ECE %: expected calibration error (overall: "
            f"{tables.percent(self.calibration_error)})."
        )
        if self.timing is not None:
            caption += (
                f" {1e3 * self.timing.slope:.3g} ms per image, backbone "
                f"{1e3 * self.timing.backbone_slope:.3g} ms, over {len(self.timing.sizes)} sizes."
            )
        table = tables.new_table(
            f"{self.samples} images: overall accuracy {100 * self.accuracy:.2f} % (backbone "
            f"{100 * self.backbone_accuracy:.2f} %, random exiting at the same exit rates "
            f"{100 * self.random_accuracy:.2f} %), {100 * self.relative_flops:.1f} % of the FLOPs, "
            f"{100 * self.time_ratio:.0f} % of the time",
            "exit",
            "after",
            "FLOPs",
            "share %",
            "acc. %",
            "if all",
            "AUROC",
            "ECE",
            caption=caption,
        )
        for index, row in enumerate(self.exits):
            table.add_row(
                str(index),
                row.name,
                f"{row.relative_flops:.3f}",
                f"{100 * row.share:.1f}",
                tables.percent(row.accuracy),
                f"{100 * row.accuracy_if_all_exit:.2f}",
                tables.percent(row.auroc),
                tables.percent(row.calibration_error),
            )
        return tables.render(table)

    def __str__(self) -> str:
        return self.summary()


@torch.no_grad()
def evaluate(
    ee: EarlyExitModule,
    loader: Iterable[Any],
    *,
    backbone: nn.Module | None = None,
    sizes: Sequence[int] | None = None,
) -> Evaluation:
    """Measure a network with exits under its policy.

    Args:
        ee: the network, in evaluation mode.
        loader: yields (images (B, …), labels (B,)).
        backbone: the model to compare with; None measures `ee` with early exits disabled, which
            runs the operations of the backbone and no branch.
        sizes: sizes of growing test sets, the first images of `loader`, on which both networks are
            timed.

    Raises:
        ModeError: `ee` or `backbone` is in training mode.
        InputError: the loader is empty, has fewer images than the largest of `sizes`, or yields
            batches that do not fit the network; its data set has other classes than the network;
            `backbone` has another number of classes.
    """
    if ee.training or (backbone is not None and backbone.training):
        raise ModeError("evaluate needs evaluation mode: call .eval() first.")
    check_class_names(ee, ("loader", loader))
    timed_sizes = check_sizes(sizes)
    device = ee.device
    disabled = NeverExit()

    def run_adaptive(images: Tensor) -> tuple[Tensor, Tensor]:
        return ee.run_with(images, ee.policy)

    def run_backbone(images: Tensor) -> Tensor:
        return backbone(images) if backbone is not None else ee.run_with(images, disabled)[0]

    timer = BatchTimer(device, count_batches(loader))
    records: list[SampleRecords] = []
    predicted: list[Tensor] = []
    models: dict[str, Callable[[Tensor], Any]] = {"ee": run_adaptive, "backbone": run_backbone}
    thresholded = curve_policy(ee)
    labelled = batches(loader, "loader", ee.spec.num_classes, device)
    for index, (images, labels) in enumerate(track(labelled, "evaluating", count_images(loader))):
        if index == 0:
            # Warm-up, which is not timed.
            ee(images)
            _check_logits(run_backbone(images), ee)
        outputs = timer.measure(models, images)
        predicted.append(outputs["backbone"].argmax(1).cpu())
        everywhere = ee.all_exits(images)
        scores = policy_confidence(thresholded, *everywhere)
        taken = outputs["ee"][1]
        temperatures = ee.policy.temperatures
        records.append(record_batch(everywhere.logits, taken, labels, scores, temperatures))
    timer.check_memory()
    samples = concatenate(records)
    of_backbone = torch.cat(predicted)
    warn_if_at_chance(of_backbone, samples.labels, "images")
    undivided = samples.confidence if samples.undivided is None else samples.undivided
    seen = image_statistics(undivided[:, -1])
    if not warn_if_calibrated(ee, seen):
        warn_if_fitted(ee, samples.overall_correct, of_backbone == samples.labels)
    remember_evaluation(ee, seen)
    if ee.policy.reads != "nothing":
        warn_if_one_exit(samples.exit_index, [row.name for row in ee.costs], "images")
    return summarise(
        ee,
        samples,
        backbone_correct=of_backbone == samples.labels,
        timer=timer,
        timing=timer.timing(timed_sizes) if timed_sizes else None,
    )


def _check_logits(logits: object, ee: EarlyExitModule) -> None:
    """Raise InputError unless the backbone returns logits of the classes of the network."""
    expected = ee.spec.num_classes
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != expected:
        raise InputError(
            f"backbone returns {shape}, expected logits (B, {expected}): pass the model that the "
            "exits were attached to, or None to measure the network with early exits disabled."
        )


def summarise(
    ee: EarlyExitModule,
    records: SampleRecords,
    *,
    backbone_correct: Tensor | None = None,
    timer: BatchTimer | None = None,
    timing: Timing | None = None,
) -> Evaluation:
    """Compute the statistics of sample records, with the costs under the network's policy.

    Args:
        ee: the network that the records were made with.
        records: records of all samples.
        backbone_correct: (n,) which samples the backbone has right; None takes the final
            classifier.
        timer: measured times of both networks, if any.
        timing: times on test sets of growing size.
    """
    exits = tuple(
        exit_statistics(records, index, row.name, row.relative_flops)
        for index, row in enumerate(ee.costs)
    )
    # With early exits disabled no branch runs, so the cost is the backbone's.
    costs = torch.tensor(ee.costs.relative("flops"), dtype=torch.float64)
    disabled = ee.policy.reads == "nothing"
    spent = costs.new_ones(len(records.labels)) if disabled else costs[records.exit_index]
    if backbone_correct is None:
        backbone_correct = records.correct[:, -1]
    confidence, correct = records.overall_confidence, records.overall_correct
    undivided = records.overall_undivided
    return Evaluation(
        samples=len(records.labels),
        accuracy=accuracy(correct),
        backbone_accuracy=accuracy(backbone_correct),
        random_accuracy=sum(row.share * row.accuracy_if_all_exit for row in exits),
        relative_flops=float(spent.mean()),
        mean_exit=float(records.exit_index.double().mean()),
        auroc=auroc(confidence, correct),
        calibration_error=calibration_error(confidence, correct),
        seconds=math.nan if timer is None else timer.total("ee"),
        backbone_seconds=math.nan if timer is None else timer.total("backbone"),
        exits=exits,
        classes=class_statistics(records, len(exits)),
        timing=timing,
        intervals=find_intervals(correct, backbone_correct, spent, timer),
        reliability=reliability_bins(confidence, correct),
        undivided=() if undivided is None else reliability_bins(undivided, correct),
        curve=threshold_curve(ee, records),
        operating_point=operating_point_in_use(ee),
    )
