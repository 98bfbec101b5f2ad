"""sweep: one set of exits and gates for each α, with the accuracy and cost of each α."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leenet_fx import tables
from leenet_fx.data.class_names import check_class_names
from leenet_fx.errors import InputError
from leenet_fx.evaluation.evaluate import Evaluation, evaluate, summarise
from leenet_fx.evaluation.sample_records import replay
from leenet_fx.features.batches import split_batch
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.keywords import check_keywords
from leenet_fx.methods import Method, as_method
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.fit import fit
from leenet_fx.training.sanity import extremes_expected

ALPHAS = tuple(round(0.05 * step, 2) for step in range(21))
"""0, 0.05, … 1, as published for LEENet."""


@dataclass(frozen=True)
class SweepPoint:
    """Measurements on the test split for one α and one random seed.

    Attributes:
        alpha: cost weight, in [0, 1].
        seed: random seed.
        accuracy: overall accuracy (adaptive).
        random_accuracy: expected accuracy of random exiting at the same exit rates.
        relative_flops: mean FLOPs, relative to the backbone.
        mean_exit: mean exit index; N is the final classifier.
        shares: share of the samples at each exit and at the final classifier.
        seconds: measured time on the first images; None if not measured.
        backbone_seconds: measured time of the backbone in the same run; None if not measured.
    """

    alpha: float
    seed: int
    accuracy: float
    random_accuracy: float
    relative_flops: float
    mean_exit: float
    shares: tuple[float, ...]
    seconds: float | None = None
    backbone_seconds: float | None = None


@dataclass(frozen=True)
class Sweep:
    """Result of `sweep`.

    Attributes:
        method: name of the method.
        cost: kind of cost that gates were trained with.
        backbone_accuracy: accuracy of the backbone on the test split.
        samples: number of test images.
        timed: number of test images that both networks were timed on at each α.
        exits: names of the exits, and "final" for the final classifier.
        exit_flops: FLOPs of a sample that exits there, relative to the backbone.
        points: measurements for each seed and α.
    """

    method: str
    cost: str
    backbone_accuracy: float
    samples: int
    timed: int
    exits: tuple[str, ...]
    exit_flops: tuple[float, ...]
    points: tuple[SweepPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def medians(self) -> list[dict[str, Any]]:
        """Return a record for each α: medians over seeds, with lowest and highest values."""
        rows = []
        for alpha in sorted({point.alpha for point in self.points}):
            points = [point for point in self.points if point.alpha == alpha]
            row: dict[str, Any] = {"alpha": alpha, "seeds": len(points)}
            for key in ("accuracy", "random_accuracy", "relative_flops", "mean_exit"):
                row[key] = statistics.median(getattr(point, key) for point in points)
            row["accuracy_low"] = min(point.accuracy for point in points)
            row["accuracy_high"] = max(point.accuracy for point in points)
            row["flops_low"] = min(point.relative_flops for point in points)
            row["flops_high"] = max(point.relative_flops for point in points)
            ratios = [
                point.seconds / point.backbone_seconds
                for point in points
                if point.seconds and point.backbone_seconds
            ]
            row["time_ratio"] = statistics.median(ratios) if ratios else None
            by_exit = zip(*(point.shares for point in points), strict=True)
            row["shares"] = [statistics.fmean(shares) for shares in by_exit]
            rows.append(row)
        return rows

    def summary(self) -> str:
        """Format the medians as a plain-text table."""
        table = tables.new_table(
            f"{self.method}, cost in {self.cost}; {self.samples} images, backbone "
            f"{100 * self.backbone_accuracy:.2f} %",
            "α",
            "accuracy %",
            "drop",
            "random %",
            "FLOPs rel.",
            "time rel.",
            "mean exit",
            "first exit %",
            caption="Medians over seeds. drop: accuracy drop from the backbone in percentage "
            "points; random: random exiting at the same exit rates.",
        )
        for row in self.medians():
            ratio = row["time_ratio"]
            table.add_row(
                f"{row['alpha']:g}",
                f"{100 * row['accuracy']:.2f}",
                f"{100 * (self.backbone_accuracy - row['accuracy']):.2f}",
                f"{100 * row['random_accuracy']:.2f}",
                f"{row['relative_flops']:.3f}",
                "–" if ratio is None else f"{ratio:.2f}",
                f"{row['mean_exit']:.2f}",
                f"{100 * row['shares'][0]:.1f}",
            )
        return tables.render(table)

    def __str__(self) -> str:
        return self.summary()


@check_keywords
@torch.inference_mode(False)
@extremes_expected()
def sweep(
    ee: EarlyExitModule,
    train: Iterable[Any] | FeatureCache,
    test: Iterable[Any],
    *,
    calibration: Iterable[Any] | FeatureCache | None = None,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = (0,),
    method: str | Method = "leenet",
    cost: str = "flops",
    epochs: int | dict[str, int] = 10,
    lr: float | None = None,
    live: bool = False,
    timed: int = 0,
    on_point: Callable[[SweepPoint, EarlyExitModule], None] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Fit exits once for each seed and gates for each α, and measure each on the test split.

    The frozen backbone runs once over each set of images: see `cache_features`. `ee` itself is not
    changed.

    Args:
        ee: a network with exits.
        train: (images, labels) that exits are fitted on, without augmentation unless `live`.
        test: (images, labels) to measure on; nothing is fitted to them.
        calibration: (images, labels) that gates are fitted on; None takes `train`. Images that the
            backbone was not trained on are better: it has overfitted to its training images, so
            their confidences are too high.
        alphas: cost weights, each in [0, 1].
        seeds: random seeds.
        method: a registered name or a `Method`, as for `fit`.
        cost: kind of cost, as for `fit`.
        epochs: number of epochs of each phase, as for `fit`.
        lr: highest learning rate, as for `fit`.
        live: whether exits are fitted on the images of `train`, read again in each epoch, not on
            cached features.
        timed: number of test images to time both networks on at each α, with the first seed; 0 for
            no timing.
        on_point: called with each point and the network fitted for it.
        progress: whether to print each point to stderr; None prints on a terminal.

    Raises:
        InputError: the method has no last phase that trains gates alone; no α or no seed.
        InputError, UnknownNameError, StorageError, TrainingError: as `fit` and `cache_features`.
    """
    if not alphas or not seeds:
        raise InputError("A sweep needs at least one alpha and one seed.")
    check_class_names(ee, ("train", train), ("calibration", calibration), ("test", test))
    method = as_method(method)
    exit_epochs, gate_epochs = _split_epochs(method, epochs, ee.spec.classifier_is_new)
    opened: list[FeatureCache] = []

    def cached(data: Iterable[Any] | FeatureCache, name: str) -> FeatureCache:
        if isinstance(data, FeatureCache):
            return data
        opened.append(cache_features(ee, data, name=f"{name} images"))
        return opened[-1]

    show = sys.stderr.isatty() if progress is None else progress
    points: list[SweepPoint] = []
    backbone_accuracy = 0.0
    try:
        exit_data = train if live else cached(train, "train")
        if calibration is None and isinstance(exit_data, FeatureCache):
            gate_data = exit_data
        else:
            gate_data = cached(train if calibration is None else calibration, "calibration")
        test_data = cached(test, "test")
        timed_images = _first_images(test, timed) if timed else None
        for seed in seeds:
            network = copy.deepcopy(ee)
            options: dict[str, Any] = {"method": method, "cost": cost, "lr": lr, "seed": seed}
            fit(network, exit_data, epochs=exit_epochs, progress=False, **options)
            for alpha in alphas:
                fit(network, gate_data, alpha=alpha, epochs=gate_epochs, progress=False, **options)
                evaluation = summarise(network, replay(network, test_data))
                backbone_accuracy = evaluation.backbone_accuracy
                times = None
                if timed_images is not None and seed == seeds[0]:
                    times = evaluate(network, timed_images)
                point = _point(alpha, seed, evaluation, times)
                points.append(point)
                if on_point is not None:
                    on_point(point, network)
                if show:
                    print(
                        f"seed {seed}, α {alpha:g}: accuracy {100 * point.accuracy:.2f} %, "
                        f"{point.relative_flops:.3f} of the FLOPs",
                        file=sys.stderr,
                        flush=True,
                    )
        samples = len(test_data)
    finally:
        for cache in opened:
            cache.close()
    return Sweep(
        method=method.name,
        cost=cost,
        backbone_accuracy=backbone_accuracy,
        samples=samples,
        timed=timed,
        exits=tuple(row.name for row in network.costs),
        exit_flops=network.costs.relative("flops"),
        points=tuple(points),
    )


def _split_epochs(
    method: Method, epochs: int | dict[str, int], train_final: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the epochs by phase of a call that fits the exits, and of one that fits the gates."""
    phases = method.phases
    if phases[-1].parameter_groups != {"gates"}:
        raise InputError(
            f"The last phase of method '{method.name}' does not train gates alone, so exits cannot "
            "be fitted once for all α; 'leenet-fx compare' measures its frontier."
        )
    trained = [p.name for p in phases if p.parameter_groups != {"final"} or train_final]
    if isinstance(epochs, int):
        epochs = dict.fromkeys(trained, epochs)
    last = phases[-1].name
    return {**epochs, last: 0}, {**dict.fromkeys(trained, 0), last: epochs.get(last, 10)}


def _point(alpha: float, seed: int, result: Evaluation, times: Evaluation | None) -> SweepPoint:
    return SweepPoint(
        alpha=float(alpha),
        seed=seed,
        accuracy=result.accuracy,
        random_accuracy=result.random_accuracy,
        relative_flops=result.relative_flops,
        mean_exit=result.mean_exit,
        shares=tuple(row.share for row in result.exits),
        seconds=None if times is None else times.seconds,
        backbone_seconds=None if times is None else times.backbone_seconds,
    )


def _first_images(loader: Iterable[Any], count: int) -> list[Any]:
    """Read the first images into memory, so that reading them is not timed."""
    batches, read = [], 0
    for batch in loader:
        images, labels = split_batch(batch, "test")
        batches.append((images[: count - read], labels[: count - read]))
        read += len(images)
        if read >= count:
            break
    return batches
