"""evaluate: accuracy, cost and time of a network with exits, beside the plain model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx import tables
from leenet_fx.errors import InputError, ModeError
from leenet_fx.evaluation.sample_records import (
    SampleRecords,
    auroc,
    calibration_error,
    joined,
    record,
)
from leenet_fx.features.batches import batches
from leenet_fx.policies import NeverExit
from leenet_fx.surgery.module import EarlyExitModule, device_of

EXAMPLES = 6
"""How many right and how many wrong samples of each outlet are named."""


@dataclass(frozen=True)
class Example:
    """A sample by its position in the loader, its label, and what was answered."""

    position: int
    label: int
    answer: int


@dataclass(frozen=True)
class ExitStatistics:
    """An exit, or the final classifier.

    Attributes:
        name: the block it sits behind; "final" for the final classifier.
        relative_flops: FLOPs spent when leaving here, relative to the plain model.
        count: samples that left here.
        share: their share of all.
        accuracy: of those who left here; None where nobody did.
        accuracy_of_all: if every sample left here.
        auroc: probability that its confidence ranks a right answer above a wrong one, over all
            samples; None where all are right, or all wrong.
        calibration_error: expected calibration error over all samples, 15 bins.
        confusion: (label, answer, count) of the wrong answers given here, most frequent first.
        examples: the first samples that left here with a right answer, then with a wrong one.
    """

    name: str
    relative_flops: float
    count: int
    share: float
    accuracy: float | None
    accuracy_of_all: float
    auroc: float | None
    calibration_error: float | None
    confusion: tuple[tuple[int, int, int], ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ClassStatistics:
    """One class: its samples, the accuracy on them, and how many left at each outlet."""

    label: int
    samples: int
    accuracy: float
    left: tuple[int, ...]


@dataclass(frozen=True)
class Timing:
    """Measured seconds on test sets of growing size, and the slopes of the lines through them.

    Attributes:
        sizes: numbers of images.
        seconds: of the network with exits, one for each size.
        plain_seconds: of the plain model in the same run.
        slope: seconds an image, of the least-squares line through `seconds`.
        plain_slope: likewise of the plain model.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    backbone_seconds: tuple[float, ...]
    slope: float
    backbone_slope: float

    @property
    def ratio(self) -> float:
        """Slope relative to the plain model's."""
        return self.slope / self.backbone_slope


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Every mean is over samples, not over batches.

    Attributes:
        samples: number of images.
        accuracy: of the network with exits under its policy.
        plain_accuracy: of the plain model.
        random_accuracy: expected if the same shares of samples left at the exits at random.
        relative_flops: mean FLOPs spent, relative to the plain model.
        mean_exit: mean exit index; N is the final classifier.
        auroc: probability that the confidence of the answer given ranks a right one above a wrong
            one; None where all are right, or all wrong.
        calibration_error: expected calibration error of the answers given.
        seconds: measured time of the network with exits, all images.
        plain_seconds: measured time of the plain model in the same run.
        outlets: one for each exit, then the final classifier.
        classes: one for each class that occurs.
        timing: on test sets of growing size, where asked for.
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
    outlets: tuple[ExitStatistics, ...]
    classes: tuple[ClassStatistics, ...]
    timing: Timing | None = None

    @property
    def time_ratio(self) -> float:
        """Measured time relative to the plain model."""
        return self.seconds / self.backbone_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {**asdict(self), "time_ratio": self.time_ratio}
        if self.timing is not None:
            found["timing"]["ratio"] = self.timing.ratio
        return found

    def summary(self) -> str:
        """A table of text."""
        caption = (
            f"Mean exit {self.mean_exit:.2f}; time {self.seconds:.3f} s, plain model "
            f"{self.backbone_seconds:.3f} s. FLOPs: relative to the plain model; of all: accuracy % "
            "if every image left here; AUROC %: whether confidence tells right from wrong (answers "
            f"given: {tables.percent(self.auroc)}); ECE %: calibration error (answers given: "
            f"{tables.percent(self.calibration_error)})."
        )
        if self.timing is not None:
            caption += (
                f" {1e3 * self.timing.slope:.3g} ms an image, plain model "
                f"{1e3 * self.timing.backbone_slope:.3g} ms, over {len(self.timing.sizes)} sizes."
            )
        table = tables.new_table(
            f"{self.samples} images: accuracy {100 * self.accuracy:.2f} % (plain model "
            f"{100 * self.backbone_accuracy:.2f} %, same shares at random "
            f"{100 * self.random_accuracy:.2f} %), {100 * self.relative_flops:.1f} % of the FLOPs, "
            f"{100 * self.time_ratio:.0f} % of the time",
            "exit",
            "after",
            "FLOPs",
            "share %",
            "acc. %",
            "of all",
            "AUROC",
            "ECE",
            caption=caption,
        )
        for index, outlet in enumerate(self.outlets):
            table.add_row(
                str(index),
                outlet.name,
                f"{outlet.relative_flops:.3f}",
                f"{100 * outlet.share:.1f}",
                tables.percent(outlet.accuracy),
                f"{100 * outlet.accuracy_of_all:.2f}",
                tables.percent(outlet.auroc),
                tables.percent(outlet.calibration_error),
            )
        return tables.render(table)

    def __str__(self) -> str:
        return self.summary()


@torch.no_grad()
def evaluate(
    ee: EarlyExitModule,
    loader: Iterable[Any],
    *,
    plain: nn.Module | None = None,
    sizes: Sequence[int] | None = None,
) -> Evaluation:
    """Measures a network with exits under its policy.

    Args:
        ee: the network, in evaluation mode.
        loader: yields (images (B, …), labels (B,)).
        plain: the model to time beside it; None times this network with its gates shut, which runs
            the plain model's operations and no branch.
        sizes: sizes of growing test sets, the first images of `loader`, on which both are timed.

    Raises:
        ModeError: `ee` or `plain` is in training mode.
        InputError: the loader is empty, has fewer images than `sizes` asks for, or its batches do
            not fit.
    """
    if ee.training or (plain is not None and plain.training):
        raise ModeError("evaluate needs evaluation mode: call .eval() first.")
    wanted = _checked_sizes(sizes)
    device = device_of(ee)
    shut = NeverExit()

    def run_backbone(images: Tensor) -> Tensor:
        return plain(images) if plain is not None else ee.run_with(images, shut)[0]

    clock = _Clock(device)
    parts: list[SampleRecords] = []
    plain_right = 0
    for turn, (images, labels) in enumerate(batches(loader, "loader", ee.spec.num_classes, device)):
        if turn == 0:
            ee(images), run_backbone(images)
        order: tuple[tuple[str, Callable[[Tensor], Any]], ...] = (
            ("ee", lambda given: ee.run_with(given, ee.policy)),
            ("plain", run_backbone),
        )
        answers = {
            name: clock.time(name, model, images)
            for name, model in (order if turn % 2 == 0 else reversed(order))
        }
        plain_right += int((answers["plain"].argmax(1) == labels).sum())
        parts.append(record(ee.all_exits(images).logits, answers["ee"][1], labels))
        clock.end_batch(len(labels))
    found = joined(parts)
    return summarise(
        ee,
        found,
        backbone_accuracy=plain_right / len(found.labels),
        seconds=sum(clock.seconds["ee"]),
        backbone_seconds=sum(clock.seconds["plain"]),
        timing=clock.timing(wanted) if wanted else None,
    )


def summarise(
    ee: EarlyExitModule,
    found: SampleRecords,
    *,
    backbone_accuracy: float | None = None,
    seconds: float = float("nan"),
    backbone_seconds: float = float("nan"),
    timing: Timing | None = None,
) -> Evaluation:
    """The statistics of records, under the costs of the network's policy.

    Args:
        ee: the network they were made with.
        found: the records.
        plain_accuracy: of the plain model; None takes the final outlet's.
        seconds, plain_seconds, timing: what was measured.
    """
    n = len(found.labels)
    outlets = tuple(
        _outlet(found, index, row.name, row.relative_flops) for index, row in enumerate(ee.costs)
    )
    # While the gates are shut no branch runs.
    table = torch.tensor(ee.costs.relative("flops"), dtype=torch.float64)
    cost = 1.0 if ee.policy.reads == "nothing" else float(table[found.exit_index].mean())
    return Evaluation(
        samples=n,
        accuracy=_mean(found.answered_right),
        backbone_accuracy=outlets[-1].accuracy_of_all
        if backbone_accuracy is None
        else backbone_accuracy,
        random_accuracy=sum(outlet.share * outlet.accuracy_of_all for outlet in outlets),
        relative_flops=cost,
        mean_exit=_mean(found.exit_index),
        auroc=auroc(found.answered_confidence, found.answered_right),
        calibration_error=calibration_error(found.answered_confidence, found.answered_right),
        seconds=seconds,
        backbone_seconds=backbone_seconds,
        outlets=outlets,
        classes=_classes(found, len(outlets)),
        timing=timing,
    )


def _outlet(found: SampleRecords, index: int, name: str, relative_flops: float) -> ExitStatistics:
    here = found.exit_index == index
    right = found.right[:, index]
    confidence = found.confidence[:, index]
    count = int(here.sum())
    wrong_here = here & ~right
    pairs = torch.stack([found.labels[wrong_here], found.predicted[wrong_here, index]], 1)
    unique, counts = pairs.unique(dim=0, return_counts=True)
    confusion = sorted(
        ((a, b, c) for (a, b), c in zip(unique.tolist(), counts.tolist(), strict=True)),
        key=lambda row: (-row[2], row[0], row[1]),
    )
    return ExitStatistics(
        name=name,
        relative_flops=relative_flops,
        count=count,
        share=count / len(found.labels),
        accuracy=_mean(right[here]) if count else None,
        accuracy_of_all=_mean(right),
        auroc=auroc(confidence, right),
        calibration_error=calibration_error(confidence, right),
        confusion=tuple(confusion),
        examples=_examples(found, here & right) + _examples(found, wrong_here),
    )


def _classes(found: SampleRecords, outlets: int) -> tuple[ClassStatistics, ...]:
    rows = []
    for label in found.labels.unique().tolist():
        mine = found.labels == label
        rows.append(
            ClassStatistics(
                label=label,
                samples=int(mine.sum()),
                accuracy=_mean(found.answered_right[mine]),
                left=tuple(found.exit_index[mine].bincount(minlength=outlets).tolist()),
            )
        )
    return tuple(rows)


def _examples(found: SampleRecords, mask: Tensor) -> tuple[Example, ...]:
    return tuple(
        Example(position, int(found.labels[position]), int(found.answered[position]))
        for position in mask.nonzero().squeeze(1)[:EXAMPLES].tolist()
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _checked_sizes(sizes: Sequence[int] | None) -> tuple[int, ...]:
    if sizes is None:
        return ()
    wanted = tuple(sizes)
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in wanted)
    if len(wanted) < 2 or not whole or list(wanted) != sorted(set(wanted)) or wanted[0] < 1:
        raise InputError(f"sizes must be two or more growing whole numbers from 1, got {sizes!r}.")
    return wanted


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {"ee": [], "plain": []}
        self.images: list[int] = []

    def time(self, name: str, model: Callable[[Tensor], Any], images: Tensor) -> Any:
        self._wait()
        start = time.perf_counter()
        answer = model(images)
        self._wait()
        self.seconds[name].append(time.perf_counter() - start)
        return answer

    def end_batch(self, count: int) -> None:
        self.images.append(count)

    def timing(self, sizes: Sequence[int]) -> Timing:
        """Time of the first images, by size; part of a batch counts as its share of it.

        Raises:
            InputError: more images are asked for than there were.
        """
        if sizes[-1] > sum(self.images):
            raise InputError(f"sizes asks for {sizes[-1]} images, loader has {sum(self.images)}.")
        times = {name: [self._until(name, size) for size in sizes] for name in self.seconds}
        return Timing(
            sizes=tuple(sizes),
            seconds=tuple(times["ee"]),
            backbone_seconds=tuple(times["plain"]),
            slope=linear_regression(sizes, times["ee"]).slope,
            backbone_slope=linear_regression(sizes, times["plain"]).slope,
        )

    def _until(self, name: str, size: int) -> float:
        total, left = 0.0, size
        for count, seconds in zip(self.images, self.seconds[name], strict=True):
            total += seconds * min(1.0, left / count)
            left -= count
            if left <= 0:
                break
        return total

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
