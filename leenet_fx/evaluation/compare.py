"""compare: methods side by side, each with its frontier of accuracy and cost."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx import text
from leenet_fx.errors import InputError, StorageError
from leenet_fx.evaluation.budgets import Said, ask, confidences, leaves_at
from leenet_fx.methods import Method, get_method, list_overrides
from leenet_fx.parts.policies import Patience, Policy, Shut, ThresholdPolicy
from leenet_fx.parts.thresholds import get_solver
from leenet_fx.storage.files import make_folder, read_text, write_atomically
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.model import EarlyExitModule, device_of
from leenet_fx.training.cache import FeatureCache, cache_features
from leenet_fx.training.fit import fit
from leenet_fx.training.loaders import batches
from placement.strategies import Position

FILE = "comparison.json"
SCHEMA = 1
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Relative FLOPs at which methods are set side by side."""

LOSSES = (0.0, 0.01, 0.03)
"""Accuracy lost, for which the cheapest operating point is named."""

ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
LAMBDAS = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 5.0)
"""Weights of the cost that methods are trained for: an α, or a λ."""

POINTS = {"threshold": 40, "shares": 16}
"""Budgets that thresholds are solved for."""


@dataclass(frozen=True)
class Variant:
    """A method as it is to be compared.

    Attributes:
        label: what tables call it.
        method: a registered method.
        options: of the method, in the place of its own.
        strategy: placement; None takes the comparison's.
        branch: what hangs on exits; None takes the method's.
        branch_options: of it.
        epochs: of each step, or by name; None takes the comparison's.
        lr: None takes each step's own.
        augmented: whether exits are fitted on the augmented images, without kept features.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    strategy: str | tuple[Position, ...] | None = None
    branch: str | None = None
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | Mapping[str, int] | None = None
    lr: float | None = None
    augmented: bool = False


@dataclass(frozen=True)
class Operating:
    """One operating point on the report images.

    Attributes:
        setting: of the knob: a weight of the cost, a budget, a patience.
        accuracy: with exits.
        relative_flops: mean, relative to the plain model.
        shares: of the samples, leaving at each outlet.
    """

    setting: float
    accuracy: float
    relative_flops: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One method with one seed.

    Attributes:
        label: of the variant.
        method: its name.
        seed: of everything drawn.
        knob: what moves it along its frontier.
        plain_accuracy: of the network without exits, as this run leaves it.
        exits: names of the blocks with exits.
        trained_seconds: time spent training.
        points: its operating points.
        key: what it was made with.
    """

    label: str
    method: str
    seed: int
    knob: str
    plain_accuracy: float
    exits: tuple[str, ...]
    trained_seconds: float
    points: tuple[Operating, ...]
    key: str

    def accuracy_within(self, budget: float) -> float | None:
        """The best accuracy of a point that spends at most `budget`; None where none does."""
        found = [p.accuracy for p in self.points if p.relative_flops <= budget + 1e-9]
        return max(found, default=None)

    def flops_within(self, plain: float, lost: float) -> float | None:
        """The least relative FLOPs of a point that loses at most `lost` against `plain`."""
        found = [p.relative_flops for p in self.points if p.accuracy >= plain - lost - 1e-9]
        return min(found, default=None)

    def area(self, classes: int, plain: float) -> float:
        """Area under the frontier, relative FLOPs from 0 to 1.

        The frontier is the concave hull of the points, of guessing for nothing and of the plain
        model: what a random mixture of these reaches.
        """
        corners = [(0.0, 1 / classes), (1.0, plain)]
        corners += [(p.relative_flops, p.accuracy) for p in self.points if p.relative_flops <= 1]
        hull: list[tuple[float, float]] = []
        for x, y in sorted(corners):
            while len(hull) > 1 and _turns_up(hull[-2], hull[-1], (x, y)):
                hull.pop()
            hull.append((x, y))
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(hull))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        model: name of the backbone.
        plain_accuracy: of the backbone as it was given, on the report images.
        samples: number of report images.
        classes: number of classes.
        runs: one for each variant and seed.
    """

    model: str
    plain_accuracy: float
    samples: int
    classes: int
    runs: tuple[Run, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "schema": SCHEMA, "rows": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One record for each variant, best area first: medians over seeds."""
        rows = []
        for label in dict.fromkeys(run.label for run in self.runs):
            runs = [run for run in self.runs if run.label == label]
            plain = self.plain_accuracy
            row: dict[str, Any] = {"label": label, "method": runs[0].method, "seeds": len(runs)}
            areas = [run.area(self.classes, plain) for run in runs]
            row |= {"area": statistics.median(areas), "areas": areas}
            for lost in LOSSES:
                found = [run.flops_within(plain, lost) for run in runs]
                row[f"flops_at_{100 * lost:g}"] = _median(found)
            for budget in BUDGETS:
                found = [run.accuracy_within(budget) for run in runs]
                row[f"accuracy_at_{budget:g}"] = _median(found)
            row["plain_accuracy"] = statistics.median(run.plain_accuracy for run in runs)
            row["exits"] = len(runs[0].exits)
            row["trained_seconds"] = statistics.median(run.trained_seconds for run in runs)
            rows.append(row)
        return sorted(rows, key=lambda row: -row["area"])

    def summary(self) -> str:
        """A table of text."""
        table = text.new_table(
            f"{self.model}: {self.samples} report images, plain model "
            f"{100 * self.plain_accuracy:.2f} %",
            "method",
            "area",
            *(f"FLOPs −{100 * lost:g}" for lost in LOSSES),
            *(f"@{budget:g}" for budget in (0.4, 0.6, 0.8)),
            caption="Medians over seeds. FLOPs −x: the least relative FLOPs that lose at most x "
            "points; @b: accuracy in % within b of the FLOPs; area under the frontier.",
        )
        for row in self.rows():
            table.add_row(
                row["label"],
                f"{row['area']:.3f}",
                *(_shown(row[f"flops_at_{100 * lost:g}"]) for lost in LOSSES),
                *(_shown(row[f"accuracy_at_{budget:g}"], 100) for budget in (0.4, 0.6, 0.8)),
            )
        return text.render(table)

    def __str__(self) -> str:
        return self.summary()


def frozen(methods: Sequence[str]) -> list[Variant]:
    """Each method with the backbone frozen, where it can be."""
    return [
        Variant(name, name, {"recipe": "disjoint"} if "recipe" in list_overrides(name) else {})
        for name in methods
    ]


def compare(
    model: nn.Module,
    variants: Sequence[Variant],
    train: Iterable[Any],
    calibrate: Iterable[Any],
    report: Iterable[Any],
    *,
    augmented: Iterable[Any] | None = None,
    strategy: str | Sequence[Position] = "every",
    num_exits: int | None = None,
    example_inputs: object = None,
    num_classes: int | None = None,
    name: str | None = None,
    epochs: int | Mapping[str, int] = 10,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fits every method on the same backbone and images, and draws each one's frontier.

    Gates and thresholds see the calibrate images, classifiers the training images, figures are of
    the report images. A frozen backbone runs once over each set of images for all methods whose
    branches keep the same features.

    Args:
        model: the backbone; it stays as it is.
        variants: what to compare; `frozen(list_methods())` for all presets.
        train, calibrate, report: (images, labels), without augmentation.
        augmented: the training images with augmentation, for variants that ask for them and for
            recipes that train the backbone; None takes `train`.
        strategy, num_exits, example_inputs, num_classes, name: as `attach` takes them.
        epochs: of each step, or by name.
        seeds: for everything drawn.
        out: folder for `comparison.json`, written after each run; runs it holds are not repeated.
        progress: whether to tell of each run on stderr; None does so on a terminal.

    Raises:
        InputError, UnknownNameError: as `attach` and `fit`; two variants of one label.
        StorageError: `out` cannot be written, or holds something else.
    """
    labels = [variant.label for variant in variants]
    if not variants or not seeds or len(set(labels)) < len(labels):
        raise InputError(
            f"A comparison needs a seed, and variants with labels of their own, got {labels}."
        )
    for variant in variants:
        get_method(variant.method, **variant.options)
    show = sys.stderr.isatty() if progress is None else progress
    place = None if out is None else Path(out) / FILE
    kept = {} if place is None else _read(place)
    work = _Features(train, calibrate, report, train if augmented is None else augmented)
    runs: list[Run] = []
    plain, samples, classes = math.nan, 0, 0
    model_name = ""
    try:
        for variant in variants:
            placed = strategy if variant.strategy is None else variant.strategy
            method = get_method(variant.method, **variant.options)
            length = epochs if variant.epochs is None else variant.epochs
            for seed in seeds:
                key = _key(variant, placed, num_exits, length)
                ee = attach(
                    model,
                    placed if isinstance(placed, str) else list(placed),
                    num_exits=num_exits,
                    example_inputs=example_inputs,
                    num_classes=num_classes,
                    branch=variant.branch,
                    branch_options=variant.branch_options,
                    method=variant.method,
                    copy=_trains_backbone(method),
                    seed=seed,
                    name=name,
                ).eval()
                model_name, classes = ee.spec.profile.model, ee.spec.num_classes
                if not runs:
                    plain, samples = _plain_accuracy(ee, report)
                done = kept.get((variant.label, seed))
                if done is None or done.key != key:
                    done = _run(ee, variant, method, work, length, seed, key)
                runs.append(done)
                found = Comparison(model_name, plain, samples, classes, tuple(runs))
                if place is not None:
                    make_folder(place.parent)
                    write_atomically(place, json.dumps(found.to_dict(), indent=1) + "\n")
                if show:
                    _tell(done, plain)
    finally:
        work.close()
    return found


class _Features:
    """The images, and what was kept of them for the network that was asked for last."""

    def __init__(self, *loaders: Iterable[Any]) -> None:
        self.train, self.calibrate, self.report, self.augmented = loaders
        self._kept: dict[str, FeatureCache] = {}

    def of(self, ee: EarlyExitModule, name: str) -> FeatureCache:
        """Kept features of "train", "calibrate" or "report"."""
        held = self._kept.get(name)
        if held is not None and not held.fits(ee):
            self._kept.pop(name).close()
            held = None
        if held is None:
            held = self._kept[name] = cache_features(ee, getattr(self, name))
        return held

    def close(self) -> None:
        """Gives memory and files back."""
        for held in self._kept.values():
            held.close()
        self._kept.clear()


def _run(
    ee: EarlyExitModule,
    variant: Variant,
    method: Method,
    work: _Features,
    epochs: int | Mapping[str, int],
    seed: int,
    key: str,
) -> Run:
    """Fits one variant and measures its frontier."""
    joint = _trains_backbone(method)
    live = joint or variant.augmented
    options: dict[str, Any] = {
        "method": variant.method,
        "seed": seed,
        "lr": variant.lr,
        "progress": False,
    }
    options |= dict(variant.options)
    lengths = _lengths(method, epochs, ee.spec.classifier_is_new)
    only_gates = [step.name for step in method.steps if step.trains == {"gates"}]
    by_weight = method.knob == "weight"
    settings: list[float] = [method.weight]
    if by_weight:
        settings = list(ALPHAS if method.highest_weight == 1 else LAMBDAS)
    trained = 0.0
    points: list[Operating] = []
    plain = math.nan
    start = ee.state_dict() if not by_weight else {k: v.clone() for k, v in ee.state_dict().items()}
    for turn, setting in enumerate(settings):
        now = lengths
        if turn and only_gates and not joint:
            # Classifiers do not depend on the weight of the cost.
            now = {step: length if step in only_gates else 0 for step, length in lengths.items()}
        elif turn:
            ee.load_state_dict(start)
        began = time.perf_counter()
        gates_on = work.of(ee, "calibrate") if not joint else work.calibrate
        train = work.augmented if live else work.of(ee, "train")
        fit(ee, train, gates=gates_on, alpha=setting, epochs=now, **options)
        trained += time.perf_counter() - began
        tuned = ask(ee, work.of(ee, "calibrate"))
        asked = ask(ee, work.of(ee, "report"))
        last = len(asked.logits) - 1
        plain = _accuracy(asked, asked.labels.new_full(asked.labels.shape, last))
        if by_weight:
            points.append(_point(ee, ee.policy, asked, setting))
        else:
            points += _frontier(ee, method, tuned, asked)
    return Run(
        variant.label,
        variant.method,
        seed,
        method.knob,
        plain,
        ee.spec.placement.names,
        trained,
        tuple(points),
        key,
    )


def _frontier(ee: EarlyExitModule, method: Method, tuned: Said, asked: Said) -> Iterable[Operating]:
    """Operating points of a fitted network, each chosen on `tuned` and measured on `asked`."""
    policy = ee.policy
    if method.knob == "dial":
        for alpha in ALPHAS:
            yield _point(ee, policy.turned(alpha), asked, alpha)
        return
    if method.knob == "patience":
        for patience in range(1, ee.num_exits):
            yield _point(ee, Patience(patience), asked, patience)
        return
    assert isinstance(policy, ThresholdPolicy)
    solve = get_solver("exponential" if method.knob == "shares" else "common")
    sure = confidences(ee, policy, tuned)
    costs = ee.costs.relative()
    count = POINTS[method.knob]
    for step in range(count + 1):
        budget = costs[0] + (costs[-1] - costs[0]) * step / count
        yield _point(ee, policy.with_confidence(solve(sure, costs, budget)), asked, budget)


def _point(ee: EarlyExitModule, policy: Policy, asked: Said, setting: float) -> Operating:
    left = leaves_at(ee, policy, asked)
    counts = left.bincount(minlength=ee.num_exits + 1).double() / len(left)
    costs = counts.new_tensor(_costs_under(ee, policy))
    return Operating(
        float(setting),
        _accuracy(asked, left),
        float((counts * costs).sum()),
        tuple(counts.tolist()),
    )


def _costs_under(ee: EarlyExitModule, policy: Policy) -> tuple[float, ...]:
    ee.policy = policy
    return ee.costs.relative()


def _accuracy(asked: Said, left: Any) -> float:
    return float(asked.right(left).double().mean())


def _plain_accuracy(ee: EarlyExitModule, report: Iterable[Any]) -> tuple[float, int]:
    """Of the network as it was given, and the number of images."""
    right = samples = 0
    device = device_of(ee)
    for images, labels in batches(report, "report", ee.spec.num_classes, device):
        with torch.no_grad():
            right += int((ee.run_with(images, Shut())[0].argmax(1) == labels).sum())
        samples += len(labels)
    return right / samples, samples


def _trains_backbone(method: Method) -> bool:
    return any("backbone" in step.trains for step in method.steps)


def _lengths(method: Method, epochs: int | Mapping[str, int], train_final: bool) -> dict[str, int]:
    steps = [step for step in method.steps if step.trains != {"final"} or train_final]
    if isinstance(epochs, Mapping):
        # One table of epochs serves methods with other steps too.
        return {step.name: epochs.get(step.name, epochs.get("exits", 10)) for step in steps}
    return {step.name: epochs for step in steps}


def _key(
    variant: Variant, strategy: object, num_exits: int | None, epochs: int | Mapping[str, int]
) -> str:
    made = {**asdict(variant), "strategy": strategy, "num_exits": num_exits, "epochs": epochs}
    return json.dumps(made, sort_keys=True, default=str)


def _read(path: Path) -> dict[tuple[str, int], Run]:
    if not path.exists():
        return {}
    try:
        found = json.loads(read_text(path))
        runs = [
            Run(
                **{
                    **run,
                    "exits": tuple(run["exits"]),
                    "points": tuple(
                        Operating(**{**point, "shares": tuple(point["shares"])})
                        for point in run["points"]
                    ),
                }
            )
            for run in found["runs"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"'{path}' is no comparison that can be taken up: {error}.") from error
    return {(run.label, run.seed): run for run in runs}


def _tell(run: Run, plain: float) -> None:
    cheapest = run.flops_within(plain, 0.01)
    print(
        f"{run.label}, seed {run.seed}: {len(run.points)} points, trained "
        f"{run.trained_seconds:.0f} s, −1 point at "
        f"{'no point' if cheapest is None else f'{cheapest:.3f} of the FLOPs'}",
        file=sys.stderr,
        flush=True,
    )


def _median(found: Sequence[float | None]) -> float | None:
    """None where a run has none."""
    known = [value for value in found if value is not None]
    return statistics.median(known) if len(known) == len(found) else None


def _shown(value: float | None, scale: float = 1) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if scale == 1 else f"{scale * value:.2f}"
