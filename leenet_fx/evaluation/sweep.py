"""sweep: one set of exits, gates for each α, and what each α costs and answers."""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leenet_fx import tables
from leenet_fx.errors import InputError
from leenet_fx.evaluation.evaluate import Evaluation, evaluate, summarise
from leenet_fx.evaluation.sample_records import replay
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.keywords import check_keywords
from leenet_fx.methods import Method, as_method
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.fit import fit

ALPHAS = tuple(round(0.05 * step, 2) for step in range(21))
"""0, 0.05, … 1, as LEENet published them."""


@dataclass(frozen=True)
class SweepPoint:
    """One α with one seed, on the report images.

    Attributes:
        alpha: weight of the cost against the error.
        seed: of everything drawn.
        accuracy: with exits.
        random_accuracy: expected if the same shares of samples left at the exits at random.
        relative_flops: mean FLOPs spent, relative to the plain model.
        mean_exit: mean exit index; N is the final classifier.
        shares: of the samples, leaving at each outlet.
        seconds: measured time of the first images; None where nothing was timed.
        plain_seconds: of the plain model in the same run.
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
    """What `sweep` found.

    Attributes:
        method: the preset.
        cost: what counted as cost.
        plain_accuracy: of the plain model on the report images.
        samples: number of report images.
        timed: how many of them were timed at each α.
        outlets: names of the exits and "final".
        outlet_flops: FLOPs of leaving at each, relative to the plain model.
        points: one for each seed and α.
    """

    method: str
    cost: str
    backbone_accuracy: float
    samples: int
    timed: int
    outlets: tuple[str, ...]
    exit_flops: tuple[float, ...]
    points: tuple[SweepPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def medians(self) -> list[dict[str, Any]]:
        """One record for each α: medians over seeds, and the lowest and highest accuracy."""
        rows = []
        for alpha in sorted({point.alpha for point in self.points}):
            here = [point for point in self.points if point.alpha == alpha]
            row: dict[str, Any] = {"alpha": alpha, "seeds": len(here)}
            for key in ("accuracy", "random_accuracy", "relative_flops", "mean_exit"):
                row[key] = statistics.median(getattr(point, key) for point in here)
            row["accuracy_low"] = min(point.accuracy for point in here)
            row["accuracy_high"] = max(point.accuracy for point in here)
            row["flops_low"] = min(point.relative_flops for point in here)
            row["flops_high"] = max(point.relative_flops for point in here)
            ratios = [
                p.seconds / p.backbone_seconds for p in here if p.seconds and p.backbone_seconds
            ]
            row["time_ratio"] = statistics.median(ratios) if ratios else None
            row["shares"] = [
                statistics.fmean(column) for column in zip(*(p.shares for p in here), strict=True)
            ]
            rows.append(row)
        return rows

    def summary(self) -> str:
        """A table of text."""
        table = tables.new_table(
            f"{self.method}, cost by {self.cost}; {self.samples} images, plain model "
            f"{100 * self.backbone_accuracy:.2f} %",
            "α",
            "accuracy %",
            "lost",
            "at random %",
            "FLOPs rel.",
            "time rel.",
            "mean exit",
            "first exit %",
            caption="Medians over seeds; lost: points of accuracy below the plain model.",
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
def sweep(
    ee: EarlyExitModule,
    train: Iterable[Any] | FeatureCache,
    report: Iterable[Any],
    *,
    gates: Iterable[Any] | FeatureCache | None = None,
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = (0,),
    method: str | Method = "leenet",
    cost: str = "flops",
    epochs: int | dict[str, int] = 10,
    lr: float | None = None,
    live: bool = False,
    timed: int = 0,
    keep: Callable[[SweepPoint, EarlyExitModule], None] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Fits exits once for each seed and gates for each α, and measures each on the report images.

    The frozen backbone runs once over each set of images: see `cache_features`. `ee` itself stays
    as it is.

    Args:
        ee: a network with exits.
        train: (images, labels) that exits are fitted on, without augmentation unless `live`.
        report: (images, labels) that figures are measured on; nothing is fitted to them.
        gates: (images, labels) that gates are fitted on; None takes `train`. Images that the
            backbone has not learned by heart tell better which exits are to be trusted.
        alphas: weights of the cost, each in [0, 1].
        seeds: for everything drawn.
        method, cost, epochs, lr: as `fit` takes them.
        live: whether exits are fitted on the images of `train` as they are read anew each epoch,
            not on kept features.
        timed: how many report images to time both networks on at each α, with the first seed; 0
            for none.
        keep: called with each point and the network fitted for it.
        progress: whether to tell of each point on stderr; None does so on a terminal.

    Raises:
        InputError: the method has no step that trains gates alone.
        InputError, UnknownNameError, StorageError, TrainingError: as `fit` and `cache_features`.
    """
    if not alphas or not seeds:
        raise InputError("A sweep needs at least one alpha and one seed.")
    chosen = as_method(method)
    before, gate_epochs = _phases(chosen, epochs, ee.spec.classifier_is_new)
    made: list[FeatureCache] = []

    def kept(data: Any) -> FeatureCache:
        if isinstance(data, FeatureCache):
            return data
        made.append(cache_features(ee, data))
        return made[-1]

    show = sys.stderr.isatty() if progress is None else progress
    points: list[SweepPoint] = []
    plain = 0.0
    try:
        fitted_on = train if live else kept(train)
        reuse = gates is None and isinstance(fitted_on, FeatureCache)
        gates_on = fitted_on if reuse else kept(train if gates is None else gates)
        held_out = kept(report)
        sample = _first(report, timed) if timed else None
        for turn, seed in enumerate(seeds):
            work = copy.deepcopy(ee)
            options: dict[str, Any] = {"method": chosen, "cost": cost, "lr": lr, "seed": seed}
            fit(work, fitted_on, epochs=before, progress=False, **options)
            for alpha in alphas:
                fit(work, gates_on, alpha=alpha, epochs=gate_epochs, progress=False, **options)
                found = summarise(work, replay(work, held_out))
                plain = found.backbone_accuracy
                times = evaluate(work, sample) if sample is not None and turn == 0 else None
                point = _point(alpha, seed, found, times)
                points.append(point)
                if keep is not None:
                    keep(point, work)
                if show:
                    print(
                        f"seed {seed}, α {alpha:g}: {100 * point.accuracy:.2f} %, "
                        f"{point.relative_flops:.3f} of the FLOPs",
                        file=sys.stderr,
                        flush=True,
                    )
        samples = len(held_out)
    finally:
        for cache in made:
            cache.close()
    return Sweep(
        method=chosen.name,
        cost=cost,
        backbone_accuracy=plain,
        samples=samples,
        timed=timed,
        outlets=tuple(row.name for row in work.costs),
        exit_flops=work.costs.relative("flops"),
        points=tuple(points),
    )


def _phases(
    method: Method, epochs: int | dict[str, int], train_final: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Epochs of what comes before the gates, and of the gates alone."""
    phases = method.phases
    if phases[-1].parameter_groups != {"gates"}:
        raise InputError(
            f"Method '{method.name}' has no last step that trains gates alone, so α cannot vary on the "
            "same exits; 'leenet-fx compare' draws its frontier."
        )
    if isinstance(epochs, int):
        epochs = {s.name: epochs for s in phases if s.parameter_groups != {"final"} or train_final}
    last = phases[-1].name
    none = {phase.name: 0 for phase in phases if phase.parameter_groups != {"final"} or train_final}
    return {**epochs, last: 0}, {**none, last: epochs.get(last, 10)}


def _point(alpha: float, seed: int, found: Evaluation, times: Evaluation | None) -> SweepPoint:
    return SweepPoint(
        alpha=float(alpha),
        seed=seed,
        accuracy=found.accuracy,
        random_accuracy=found.random_accuracy,
        relative_flops=found.relative_flops,
        mean_exit=found.mean_exit,
        shares=tuple(outlet.share for outlet in found.outlets),
        seconds=None if times is None else times.seconds,
        backbone_seconds=None if times is None else times.backbone_seconds,
    )


def _first(loader: Iterable[Any], count: int) -> list[Any]:
    """The first images as batches in memory, so that reading them is not timed."""
    found, seen = [], 0
    for images, labels, *_ in loader:
        found.append((images[: count - seen], labels[: count - seen]))
        seen += len(images)
        if seen >= count:
            break
    return found
