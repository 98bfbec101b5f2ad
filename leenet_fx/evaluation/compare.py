"""compare: methods side by side, each with its frontier of accuracy and cost."""

from __future__ import annotations

import copy
import json
import math
import random
import statistics
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx import tables
from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    ask,
    cached_exit_indices,
    confidences,
)
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.errors import InputError, StorageError, TrainingError, first_line
from leenet_fx.features.batches import batches, count_batches
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.methods import Method, get_method, list_method_options
from leenet_fx.policies import NeverExit, Patience, Policy, ThresholdPolicy
from leenet_fx.storage.exits import load
from leenet_fx.storage.files import make_folder, read_text, write_atomically
from leenet_fx.storage.fingerprint import backbone_digest
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule, device_of
from leenet_fx.training.checkpoint import random_state, set_random_state
from leenet_fx.training.fit import fit
from placement.strategies import Position

FILE = "comparison.json"
SCHEMA = 1
SAME = 0.005
"""Accuracy by which the plain model may differ from one machine to another."""

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Relative FLOPs at which methods are set side by side."""

SHOWN = (0.4, 0.6, 0.8)
"""Those of the table for terminals."""

LOSSES = (0.0, 0.01, 0.03)
"""Accuracy lost, for which the cheapest operating point is named."""

ALPHAS = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 1.0)
LAMBDAS = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Weights of the cost that methods are trained for: an α, or a λ."""

POINTS = {"threshold": 100, "shares": 16}
"""Budgets that thresholds are solved for."""


@dataclass(frozen=True)
class MethodSpec:
    """A method as it is to be compared.

    Attributes:
        label: what tables call it.
        method: a registered method.
        options: of the method, in the place of its own.
        strategy: placement; None takes the comparison's, and its number of exits.
        branch: what hangs on exits; None takes the method's.
        branch_options: of it.
        epochs: of each step, or by name; None takes the comparison's.
        lr: None takes each step's own.
        augmented: whether exits are fitted on the augmented images, without kept features.
        start: folder of a saved network whose classifiers to begin with, "{seed}" in it standing
            for the seed; with `epochs={"exits": 0}` they stay as they are.
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
    start: str | None = None


@dataclass(frozen=True)
class FrontierPoint:
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
class MethodRun:
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
    trade_off: str
    backbone_accuracy: float
    exits: tuple[str, ...]
    trained_seconds: float
    points: tuple[FrontierPoint, ...]
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
        model: what a random mixture of these reaches within a budget. So it never falls.

        Args:
            classes: number of classes.
            plain: accuracy of the plain model.
        """
        corners = [(0.0, 1 / classes), (1.0, plain)]
        corners += [(p.relative_flops, p.accuracy) for p in self.points if p.relative_flops <= 1]
        corners.append((1.0, max(accuracy for _, accuracy in corners)))
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
        plain_accuracy: of the backbone as it was given, on the report images; where its final
            classifier is new, the median of the runs that trained one.
        samples: number of report images.
        classes: number of classes.
        runs: one for each variant and seed.
        left_out: of variants that do not fit the network, or failed on it, by label, why.
    """

    model: str
    backbone_accuracy: float
    samples: int
    classes: int
    runs: tuple[MethodRun, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `rows`."""
        return {**asdict(self), "rows": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """One record for each variant, best area first: medians over seeds."""
        rows = []
        for label in dict.fromkeys(run.label for run in self.runs):
            runs = [run for run in self.runs if run.label == label]
            plain = self.backbone_accuracy
            row: dict[str, Any] = {"label": label, "method": runs[0].method, "seeds": len(runs)}
            areas = [run.area(self.classes, plain) for run in runs]
            row |= {"area": statistics.median(areas), "areas": areas}
            for lost in LOSSES:
                found = [run.flops_within(plain, lost) for run in runs]
                row[f"flops_at_{100 * lost:g}"] = _median(found)
            for budget in BUDGETS:
                found = [run.accuracy_within(budget) for run in runs]
                row[f"accuracy_at_{budget:g}"] = _median(found)
            row["plain_accuracy"] = statistics.median(run.backbone_accuracy for run in runs)
            row["exits"] = len(runs[0].exits)
            row["trained_seconds"] = statistics.median(run.trained_seconds for run in runs)
            rows.append(row)
        return sorted(rows, key=lambda row: -row["area"])

    def summary(self) -> str:
        """A table of text, and what was left out."""
        rows = self.rows()
        seeds = max(row["seeds"] for row in rows)
        table = tables.new_table(
            f"{self.model}: {self.samples} report images, plain model "
            f"{100 * self.backbone_accuracy:.2f} %",
            "method",
            "area",
            *(f"−{100 * lost:g} pt" for lost in LOSSES),
            *(f"@{budget:g}" for budget in SHOWN),
            caption=("One seed." if seeds == 1 else f"Medians over {seeds} seeds.")
            + " area: under the frontier, accuracy over relative FLOPs.\n"
            "−x pt: the least relative FLOPs that lose at most x points of accuracy.\n"
            "@b: accuracy in % within b of the FLOPs. –: no point does.",
        )
        for row in rows:
            table.add_row(
                row["label"],
                f"{row['area']:.3f}",
                *(_shown(row[f"flops_at_{100 * lost:g}"]) for lost in LOSSES),
                *(_shown(row[f"accuracy_at_{budget:g}"], 100) for budget in SHOWN),
            )
        lines = [f"Left out: {label}: {why}" for label, why in self.skipped.items()]
        return "\n".join(
            [tables.render(table), *(textwrap.fill(line, tables.WIDTH) for line in lines)]
        )

    def __str__(self) -> str:
        return self.summary()


def frozen(methods: Sequence[str]) -> list[MethodSpec]:
    """Each method with the backbone frozen, where it can be."""
    return [
        MethodSpec(
            name, name, {"recipe": "disjoint"} if "recipe" in list_method_options(name) else {}
        )
        for name in methods
    ]


def compare(
    model: nn.Module,
    variants: Sequence[MethodSpec],
    train: Iterable[Any],
    calibrate: Iterable[Any],
    report: Iterable[Any],
    *,
    augmented: Iterable[Any] | None = None,
    strategy: str | Sequence[Position] = "every",
    num_exits: int | None = None,
    example_inputs: object = None,
    num_classes: int | None = None,
    blocks: Iterable[str | type[nn.Module]] | None = None,
    name: str | None = None,
    epochs: int | Mapping[str, int] = 10,
    precision: str | None = None,
    seeds: Sequence[int] = (0,),
    skip_unfit: bool = False,
    out: str | Path | None = None,
    frame: Mapping[str, Any] | None = None,
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
        strategy, num_exits, example_inputs, num_classes, blocks, name: as `attach` takes them.
        epochs: of each step, or by name.
        precision: that exits are trained in, as `fit` takes it; all else is in full precision.
        seeds: for everything drawn: a run is the same whichever ran before it.
        leave_out: whether a variant that does not fit the network, or fails to train on it, is left
            out with the reason; else it is an error.
        out: folder for `comparison.json`, written after each run. A comparison that was cut short
            goes on where it was; runs with other options, seeds or numbers of batches are made
            anew, and runs of other variants stay in the file, out of the comparison.
        frame: what that file says for the report page besides: `command`, `environment`, `config`,
            `network`, `classes`.
        progress: whether to tell of each run on stderr; None does so on a terminal.

    Raises:
        InputError, UnknownNameError, TrainingError: as `attach` and `fit`; two variants of one
            label, one seed twice; no variant fits.
        StorageError: `out` cannot be written, or holds a comparison of another network, or of
            other images.
    """
    labels = [variant.label for variant in variants]
    doubled = len(set(labels)) < len(labels) or len(set(seeds)) < len(seeds)
    if not variants or not seeds or doubled:
        raise InputError(
            "A comparison needs variants with labels of their own, and seeds, each once: got "
            f"{labels} and {list(seeds)}."
        )
    for variant in variants:
        get_method(variant.method, **variant.options)
    show = sys.stderr.isatty() if progress is None else progress
    common: dict[str, Any] = {
        "example_inputs": example_inputs,
        "num_classes": num_classes,
        "blocks": blocks if blocks is None or isinstance(blocks, str) else tuple(blocks),
        "name": name,
    }
    loaders = (train, calibrate, report, train if augmented is None else augmented)
    runs: dict[tuple[str, int], MethodRun] = {}
    skipped: dict[str, str] = {}
    with _drawn_aside(loaders), closing(_Features(*loaders)) as work:
        base = attach(model, strategy, num_exits=num_exits, copy=False, **common).eval()
        given, samples = _plain_accuracy(base, report)
        file = None if out is None else _File(Path(out) / FILE, frame or {}, base, given, samples)
        for variant, seed in product(variants, seeds):
            if variant.label in skipped:
                continue
            placed = strategy if variant.strategy is None else variant.strategy
            number = num_exits if variant.strategy is None else None
            method = get_method(variant.method, **variant.options)
            length = epochs if variant.epochs is None else variant.epochs
            live = variant.augmented or _trains_backbone(method)
            sizes = [count_batches(at) for at in (work.augmented if live else train, calibrate)]
            key = _key(variant, placed, number, common["blocks"], length, precision, sizes)
            done = None if file is None else file.kept.get((variant.label, seed))
            if done is None or done.key != key:
                try:
                    ee = attach(
                        model,
                        placed if isinstance(placed, str) else list(placed),
                        num_exits=number,
                        branch=variant.branch,
                        branch_options=variant.branch_options,
                        method=method,
                        copy=_trains_backbone(method),
                        seed=seed,
                        **common,
                    ).eval()
                    if variant.start is not None:
                        _begin(ee, model, variant.start.format(seed=seed))
                    _check_trained(ee, variant.method, method)
                    done = _run(ee, variant, method, work, length, precision, seed, key)
                except (InputError, TrainingError) as error:
                    if not skip_unfit:
                        raise
                    skipped[variant.label] = str(error)
                    runs = {at: run for at, run in runs.items() if at[0] != variant.label}
                    continue
            runs[variant.label, seed] = done
            found = _found(base, given, samples, runs, skipped)
            if file is not None:
                file.kept[variant.label, seed] = done
                file.write(found)
            if show:
                _tell(done, found.backbone_accuracy)
    if not runs:
        why = "; ".join(f"{label}: {reason}" for label, reason in skipped.items())
        raise InputError(f"No variant fits {base.spec.profile.model}: {why}")
    found = _found(base, given, samples, runs, skipped)
    if file is not None:
        file.write(found)
    return found


def _found(
    base: EarlyExitModule,
    given: float,
    samples: int,
    runs: Mapping[tuple[str, int], MethodRun],
    skipped: Mapping[str, str],
) -> Comparison:
    """What is known so far; `given` is the plain model's accuracy."""
    spec = base.spec
    if spec.classifier_is_new:
        given = statistics.median(run.backbone_accuracy for run in runs.values())
    return Comparison(
        spec.profile.model, given, samples, spec.num_classes, tuple(runs.values()), dict(skipped)
    )


@contextmanager
def _drawn_aside(loaders: Iterable[object]) -> Iterator[None]:
    """Whatever is drawn inside, the generators of the process and of the loaders stay as before."""
    before = random_state(loaders)
    try:
        yield
    finally:
        set_random_state(before, loaders)


def _draw_from(seed: int, loaders: Iterable[object]) -> None:
    """Seeds every generator that decides what comes next."""
    import numpy as np

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    for loader in loaders:
        generator = getattr(loader, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _check_trained(ee: EarlyExitModule, name: str, method: Method) -> None:
    """Raises InputError for a new final classifier that a method would leave untrained."""
    parameter_groups = {group for phase in method.phases for group in phase.parameter_groups}
    if ee.spec.classifier_is_new and not parameter_groups & {"final", "backbone"}:
        raise InputError(
            f"Method '{name}' does not train the final classifier, and this one is new."
        )


class _Features:
    """The images, and what was kept of them for the network that was asked for last."""

    def __init__(self, *loaders: Iterable[Any]) -> None:
        self.loaders = loaders
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
    variant: MethodSpec,
    method: Method,
    work: _Features,
    epochs: int | Mapping[str, int],
    precision: str | None,
    seed: int,
    key: str,
) -> MethodRun:
    """Fits one variant and measures its frontier."""
    joint = _trains_backbone(method)
    live = joint or variant.augmented
    options: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "lr": variant.lr,
        "precision": precision,
        "progress": False,
    }
    lengths = _lengths(method, epochs, ee.spec.classifier_is_new)
    by_weight = method.trade_off == "weight"
    settings: tuple[float, ...] = (method.cost_weight,)
    last = list(lengths)[-1]
    trained = 0.0
    points: list[FrontierPoint] = []
    plain = math.nan

    def train(setting: float, now: Mapping[str, int]) -> None:
        nonlocal trained
        # A cache is of the backbone as it is, so for one that trains it is made afterwards.
        gates = work.calibrate if joint else work.of(ee, "calibrate")
        images = work.augmented if live else work.of(ee, "train")
        # Features are kept for all methods: neither the time that takes nor what it draws is this
        # one's.
        _draw_from(seed, work.loaders)
        began = time.perf_counter()
        fit(ee, images, gates=gates, alpha=setting if method.gated else None, epochs=now, **options)
        trained += time.perf_counter() - began

    if by_weight:
        # Only what is trained last depends on the weight of the cost.
        settings = ALPHAS if method.max_cost_weight == 1 else LAMBDAS
        if len(lengths) > 1:
            train(method.cost_weight, {**lengths, last: 0})
        lengths = {step: length if step == last else 0 for step, length in lengths.items()}
    start = copy.deepcopy(ee.state_dict())
    for setting in settings:
        ee.load_state_dict(start)
        train(setting, lengths)
        tuned = ask(ee, work.of(ee, "calibrate"))
        asked = ask(ee, work.of(ee, "report"))
        outlets = asked.labels.new_full(asked.labels.shape, ee.num_exits)
        plain = _accuracy(asked, outlets)
        if by_weight:
            points.append(_point(ee, ee.policy, asked, setting))
        else:
            points += _frontier(ee, method, tuned, asked)
    return MethodRun(
        variant.label,
        variant.method,
        seed,
        method.trade_off,
        plain,
        ee.spec.placement.names,
        trained,
        tuple(points),
        key,
    )


def _begin(ee: EarlyExitModule, model: nn.Module, folder: str) -> None:
    """Takes over bodies and heads of a saved network with the same exits.

    Raises:
        InputError: its exits or branches are others.
        StorageError: as `load`.
    """
    saved = load(folder, model)
    for own, kept in zip(ee.exits.branches(), saved.exits.branches(), strict=False):
        for part in ("body", "head"):
            if not hasattr(own, part) or not hasattr(kept, part):
                raise InputError(
                    f"'{folder}': branches without body and head cannot be begun with."
                )
            try:
                getattr(own, part).load_state_dict(getattr(kept, part).state_dict())
            except RuntimeError as error:
                raise InputError(f"'{folder}': {first_line(error)}") from error
    if saved.spec.placement.names != ee.spec.placement.names:
        raise InputError(
            f"'{folder}' has exits after {saved.spec.placement.names}, expected "
            f"{ee.spec.placement.names}."
        )


def _frontier(
    ee: EarlyExitModule, method: Method, tuned: CachedOutputs, asked: CachedOutputs
) -> Iterable[FrontierPoint]:
    """Operating points of a fitted network, each chosen on `tuned` and measured on `asked`."""
    policy = ee.policy
    if method.trade_off == "dial":
        for alpha in ALPHAS:
            yield _point(ee, policy.with_alpha(alpha), asked, alpha)
        return
    if method.trade_off == "patience":
        for patience in range(1, ee.num_exits):
            yield _point(ee, Patience(patience), asked, patience)
        return
    assert isinstance(policy, ThresholdPolicy)
    solve = get_solver("exponential" if method.trade_off == "shares" else "common")
    sure = confidences(ee, policy, tuned)
    costs = monotone_costs(ee)
    count = POINTS[method.trade_off]
    for step in range(count + 1):
        budget = costs[0] + (costs[-1] - costs[0]) * step / count
        yield _point(ee, policy.with_confidence(solve(sure, costs, budget)), asked, budget)


def _point(
    ee: EarlyExitModule, policy: Policy, asked: CachedOutputs, setting: float
) -> FrontierPoint:
    left = cached_exit_indices(ee, policy, asked)
    counts = left.bincount(minlength=ee.num_exits + 1).double() / len(left)
    costs = counts.new_tensor(_costs_under(ee, policy))
    return FrontierPoint(
        float(setting),
        _accuracy(asked, left),
        float((counts * costs).sum()),
        tuple(counts.tolist()),
    )


def _costs_under(ee: EarlyExitModule, policy: Policy) -> tuple[float, ...]:
    ee.policy = policy
    return ee.costs.relative()


def _accuracy(asked: CachedOutputs, left: Any) -> float:
    return float(asked.right(left).double().mean())


def _plain_accuracy(ee: EarlyExitModule, report: Iterable[Any]) -> tuple[float, int]:
    """Of the network as it was given, and the number of images."""
    right = samples = 0
    device = device_of(ee)
    for images, labels in batches(report, "report", ee.spec.num_classes, device):
        with torch.no_grad():
            right += int((ee.run_with(images, NeverExit())[0].argmax(1) == labels).sum())
        samples += len(labels)
    return right / samples, samples


def _trains_backbone(method: Method) -> bool:
    return any("backbone" in phase.parameter_groups for phase in method.phases)


def _lengths(method: Method, epochs: int | Mapping[str, int], train_final: bool) -> dict[str, int]:
    phases = [
        phase for phase in method.phases if phase.parameter_groups != {"final"} or train_final
    ]
    if isinstance(epochs, Mapping):
        # One table of epochs serves methods with other phases too.
        return {phase.name: epochs.get(phase.name, epochs.get("exits", 10)) for phase in phases}
    return {phase.name: epochs for phase in phases}


def _key(variant: MethodSpec, strategy: object, *common: object) -> str:
    """All that decides a run, its seed apart."""
    return json.dumps(
        {**asdict(variant), "strategy": strategy, "common": common}, sort_keys=True, default=str
    )


class _File:
    """comparison.json: what a comparison goes on from, and the record that a page is made of.

    Attributes:
        kept: the runs it holds, of this comparison or not, by label and seed.
    """

    def __init__(
        self,
        path: Path,
        frame: Mapping[str, Any],
        base: EarlyExitModule,
        given: float,
        samples: int,
    ) -> None:
        """Opens it.

        Args:
            path: where it is, or will be.
            frame: what it says besides.
            base: the network that is compared on.
            given: accuracy of the plain model.
            samples: number of report images.

        Raises:
            StorageError: its folder cannot be written to; it is damaged, or of something else.
        """
        self.path = path
        self.fingerprint_fields: dict[str, Any] = {
            "backbone": backbone_digest(base),
            "image_shape": list(base.spec.image_shape),
            "classes": base.spec.num_classes,
            "samples": samples,
            "plain_accuracy": given,
        }
        self.frame = {
            "command": "leenet_fx.compare(…)",
            "environment": {},
            "config": {},
            "network": None,
            "classes": [],
            "images": None,
            **frame,
        }
        make_folder(path.parent)
        self.kept = self._read() if path.exists() else {}

    def write(self, found: Comparison) -> None:
        """Writes the comparison, and runs that are kept but not part of it."""
        inside = {(run.label, run.seed) for run in found.runs}
        record = {
            "kind": "comparison",
            "schema": SCHEMA,
            **self.frame,
            "comparison": found.to_dict(),
            "made_of": self.fingerprint_fields,
            "others": [asdict(run) for at, run in self.kept.items() if at not in inside],
        }
        write_atomically(self.path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _read(self) -> dict[tuple[str, int], MethodRun]:
        try:
            record = json.loads(read_text(self.path))
            runs = [*record["comparison"]["runs"], *record["others"]]
            kept = {(run["label"], run["seed"]): _as_run(run) for run in runs}
            fingerprint_fields = dict(record["made_of"])
            accuracy = float(fingerprint_fields["plain_accuracy"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"'{self.path}' is no comparison that can be taken up: {error!r}."
            ) from error
        if abs(accuracy - self.fingerprint_fields["plain_accuracy"]) <= SAME:
            fingerprint_fields["plain_accuracy"] = self.fingerprint_fields["plain_accuracy"]
        for name, expected in self.fingerprint_fields.items():
            if fingerprint_fields.get(name) != expected:
                raise StorageError(
                    f"'{self.path}' is of another network or other images, with "
                    f"{name} {fingerprint_fields.get(name)}, not {expected}: choose another folder."
                )
        return kept


def _as_run(found: Mapping[str, Any]) -> MethodRun:
    """A run as JSON has it."""
    points = [FrontierPoint(**{**at, "shares": tuple(at["shares"])}) for at in found["points"]]
    return MethodRun(**{**found, "exits": tuple(found["exits"]), "points": tuple(points)})


def _tell(run: MethodRun, plain: float) -> None:
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
