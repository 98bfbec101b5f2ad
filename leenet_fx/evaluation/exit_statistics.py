"""Statistics of exits and of classes, from sample records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from leenet_fx.evaluation.metrics import accuracy, auroc, confusions
from leenet_fx.evaluation.reliability import (
    ReliabilityBin,
    expected_calibration_error,
    reliability_bins,
)
from leenet_fx.evaluation.sample_records import SampleRecords

EXAMPLES = 6
"""Number of correct, and of wrong, samples listed for each exit."""


@dataclass(frozen=True)
class Example:
    """A sample at the exit it takes.

    Attributes:
        index: its position in the loader.
        label: its class.
        predicted: the predicted class.
        confidence: softmax probability of the predicted class; None in older records.
    """

    index: int
    label: int
    predicted: int
    confidence: float | None = None


@dataclass(frozen=True)
class ExitStatistics:
    """Statistics of one exit, or of the final classifier.

    Attributes:
        name: name of the block in front of the exit; "final" for the final classifier.
        relative_flops: FLOPs of a sample that exits here, relative to the backbone.
        count: number of samples that exit here.
        share: their share of all samples.
        accuracy: accuracy on these samples; None if no sample exits here.
        accuracy_if_all_exit: accuracy if all samples exit here.
        auroc: AUROC of the confidence over all samples; None if all predictions are correct, or
            none is.
        calibration_error: expected calibration error over all samples, 15 bins.
        confusion: (label, predicted class, count) of the errors made here, most frequent first.
        examples: samples that exit here with a correct prediction, then with a wrong one, of as
            many classes as there are.
        reliability: bins of the reliability diagram over all samples; empty in older records.
        undivided: the same at temperature 1; empty if the policy has no temperatures.
    """

    name: str
    relative_flops: float
    count: int
    share: float
    accuracy: float | None
    accuracy_if_all_exit: float
    auroc: float | None
    calibration_error: float | None
    confusion: tuple[tuple[int, int, int], ...]
    examples: tuple[Example, ...]
    reliability: tuple[ReliabilityBin, ...] = ()
    undivided: tuple[ReliabilityBin, ...] = ()


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of the samples of one class.

    Attributes:
        label: class index.
        samples: number of samples.
        accuracy: accuracy on them.
        exit_counts: number of samples at each exit and at the final classifier.
    """

    label: int
    samples: int
    accuracy: float
    exit_counts: tuple[int, ...]


def exit_statistics(
    records: SampleRecords, index: int, name: str, relative_flops: float
) -> ExitStatistics:
    """Compute the statistics of one exit.

    Args:
        records: records of all samples.
        index: exit index; N is the final classifier.
        name: name of the exit.
        relative_flops: FLOPs of a sample that exits here, relative to the backbone.
    """
    exits_here = records.exit_index == index
    correct = records.correct[:, index]
    confidence = records.confidence[:, index]
    count = int(exits_here.sum())
    reliability = reliability_bins(confidence, correct)
    return ExitStatistics(
        name=name,
        relative_flops=relative_flops,
        count=count,
        share=count / len(records.labels),
        accuracy=accuracy(correct[exits_here]) if count else None,
        accuracy_if_all_exit=accuracy(correct),
        auroc=auroc(confidence, correct),
        calibration_error=expected_calibration_error(reliability),
        confusion=confusions(records.labels[exits_here], records.predicted[exits_here, index]),
        examples=_examples(records, exits_here & correct)
        + _examples(records, exits_here & ~correct),
        reliability=reliability,
        undivided=(
            ()
            if records.undivided is None
            else reliability_bins(records.undivided[:, index], correct)
        ),
    )


def class_statistics(records: SampleRecords, exits: int) -> tuple[ClassStatistics, ...]:
    """Compute the statistics of each class that occurs, in the order of the labels.

    Args:
        records: records of all samples.
        exits: number of exits, the final classifier included.
    """
    statistics = []
    for label in records.labels.unique().tolist():
        of_class = records.labels == label
        statistics.append(
            ClassStatistics(
                label=label,
                samples=int(of_class.sum()),
                accuracy=accuracy(records.overall_correct[of_class]),
                exit_counts=tuple(records.exit_index[of_class].bincount(minlength=exits).tolist()),
            )
        )
    return tuple(statistics)


def _examples(records: SampleRecords, mask: Tensor) -> tuple[Example, ...]:
    """Return samples of a mask (n,): the first of each class, then the second of each, and so on.

    Of more classes than `EXAMPLES`, some at equal steps of the label are taken.
    """
    by_class: dict[int, list[int]] = {}
    for index in mask.nonzero().squeeze(1).tolist():
        by_class.setdefault(int(records.labels[index]), []).append(index)
    classes = [by_class[label] for label in sorted(by_class)]
    if len(classes) > EXAMPLES:
        classes = [classes[place * len(classes) // EXAMPLES] for place in range(EXAMPLES)]
    rounds = zip_longest(*classes)
    chosen = [index for one in rounds for index in one if index is not None][:EXAMPLES]
    return tuple(
        Example(
            index,
            int(records.labels[index]),
            int(records.overall_predicted[index]),
            float(records.overall_confidence[index]),
        )
        for index in sorted(chosen)
    )
