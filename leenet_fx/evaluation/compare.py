"""compare: frontiers of accuracy and cost of several methods on one backbone."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx.data.class_names import check_class_names
from leenet_fx.errors import InputError, TrainingError
from leenet_fx.evaluation.comparison import Comparison, MethodSpec
from leenet_fx.evaluation.comparison_file import FILE, ComparisonFile
from leenet_fx.evaluation.cost_weights import cost_weights_of
from leenet_fx.evaluation.frontier import MethodRun
from leenet_fx.evaluation.method_run import (
    OnPoint,
    RunSettings,
    Splits,
    load_classifiers,
    run_labels,
    run_method,
)
from leenet_fx.features.batches import batches, count_batches
from leenet_fx.keywords import check_keywords
from leenet_fx.methods import get_method
from leenet_fx.policies import NeverExit
from leenet_fx.surgery.attach import attach
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.checkpoint import random_state, set_random_state
from leenet_fx.training.sanity import extremes_expected
from placement.strategies import Position


@check_keywords
@torch.inference_mode(False)
@extremes_expected()
def compare(
    model: nn.Module,
    specs: Sequence[MethodSpec],
    train: Iterable[Any],
    calibration: Iterable[Any],
    test: Iterable[Any],
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
    own_branch_costs: bool = False,
    agreement: bool = False,
    out: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    on_point: OnPoint | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fit several methods on the same backbone and images, and measure the frontier of each.

    Classifiers are fitted on the train split, gates and thresholds on the calibration split; all
    measurements are on the test split. A frozen backbone runs once over each split for all methods
    whose branches read the same features. A method that is trained for several cost weights has a
    second run, with ", thresholds" behind its label: the same networks, read by a sweep of their
    thresholds instead of the method's own rule.

    Args:
        model: the backbone, which is not changed.
        specs: what to compare; `frozen_variants(list_methods())` for all methods.
        train: (images, labels), without augmentation.
        calibration: (images, labels), without augmentation.
        test: (images, labels), without augmentation.
        augmented: the training images with augmentation, for specs with `augmented` and for methods
            that train the backbone; None takes `train`.
        strategy: placement of the exits, as for `attach`.
        num_exits: number of exits, as for `attach`.
        example_inputs: an example batch, as for `attach`.
        num_classes: number of classes, as for `attach`.
        blocks: blocks of the network, as for `attach`.
        name: name of the network, as for `attach`.
        epochs: number of epochs of each phase, or by phase name.
        precision: of training, as for `fit`; measurements are in full precision.
        seeds: random seeds. A run does not depend on the runs before it.
        skip_unfit: whether a spec that does not fit the network, or whose training fails, is
            skipped and its reason recorded; otherwise it raises an error.
        own_branch_costs: whether an exit costs no branch but its own, and the final classifier 1,
            as some publications count (PTEEnet).
        agreement: whether accuracy is the share of images for which the backbone predicts the same
            class, as PTEEnet counts. The backbone's is then 1.
        out: folder for `comparison.json`, which is written after each run. An interrupted
            comparison is resumed from it; runs with other settings, seeds or numbers of batches are
            refitted. Runs of other specs remain in the file, but not in the result.
        metadata: further entries of that file, for the report page: `command`, `environment`,
            `config`, `network`, `classes`.
        on_point: called with each point and the network of it, such as a `NetworkKeeper`; runs of
            which `out` has results are then fitted again, since it has no networks.
        progress: whether to print each run to stderr; None prints on a terminal.

    Raises:
        InputError, UnknownNameError, TrainingError: as `attach` and `fit`; two specs have the same
            label, two seeds are equal, or no spec fits.
        StorageError: `out` cannot be written to, or has the comparison of another network or of
            other images.
    """
    _check(specs, seeds)
    show = sys.stderr.isatty() if progress is None else progress
    common = _Common(
        strategy=strategy if isinstance(strategy, str) else tuple(strategy),
        num_exits=num_exits,
        epochs=epochs,
        precision=precision,
        own_branch_costs=own_branch_costs,
        agreement=agreement,
        attach_options={
            "example_inputs": example_inputs,
            "num_classes": num_classes,
            "blocks": blocks if blocks is None or isinstance(blocks, str) else tuple(blocks),
            "name": name,
        },
    )
    loaders = (train, calibration, test, train if augmented is None else augmented)
    runs: dict[tuple[str, int], MethodRun] = {}
    skipped: dict[str, str] = {}
    with _generators_restored(loaders), closing(Splits(*loaders)) as splits:
        base = common.attach(model, copy=False)
        names = ("train", "calibration", "test", "augmented")
        check_class_names(base, *zip(names, loaders, strict=True))
        backbone_accuracy, samples = _measure_backbone(base, test)
        if agreement:
            backbone_accuracy = 1.0
        file = None
        if out is not None:
            path = Path(out) / FILE
            file = ComparisonFile(path, metadata or {}, base, backbone_accuracy, samples)

        def result() -> Comparison:
            accuracy = backbone_accuracy
            if base.spec.classifier_is_new:
                accuracy = statistics.median(run.backbone_accuracy for run in runs.values())
            return Comparison(
                model=base.spec.profile.model,
                backbone_accuracy=accuracy,
                samples=samples,
                classes=base.spec.num_classes,
                runs=tuple(runs.values()),
                skipped=dict(skipped),
            )

        for spec, seed in product(specs, seeds):
            if spec.label in skipped:
                continue
            settings = common.settings(spec, seed, splits)
            labels = run_labels(spec.label, settings.method)
            found: tuple[MethodRun, ...] = ()
            if file is not None and on_point is None:
                found = file.runs_of(labels, seed, settings.key)
            if not found:
                try:
                    found = run_method(
                        common.attach_for(model, settings), settings, splits, on_point
                    )
                except (InputError, TrainingError) as error:
                    if not skip_unfit:
                        raise
                    skipped[spec.label] = str(error)
                    runs = {at: other for at, other in runs.items() if at[0] not in labels}
                    continue
            for run in found:
                runs[run.label, seed] = run
                if file is not None:
                    file.runs[run.label, seed] = run
            if file is not None:
                file.write(result())
            if show:
                for run in found:
                    _print_run(run, result().backbone_accuracy)
        if not runs:
            reasons = "; ".join(f"{label}: {reason}" for label, reason in skipped.items())
            raise InputError(f"No spec fits {base.spec.profile.model}: {reasons}")
        if file is not None:
            file.write(result())
        return result()


@dataclass(frozen=True)
class _Common:
    """Settings that the runs of a comparison share, unless a spec has its own."""

    strategy: str | tuple[Position, ...]
    num_exits: int | None
    epochs: int | Mapping[str, int]
    precision: str | None
    own_branch_costs: bool
    agreement: bool
    attach_options: Mapping[str, Any]

    def attach(self, model: nn.Module, **options: Any) -> EarlyExitModule:
        """Attach exits with the shared placement."""
        return self._attach(model, self.strategy, self.num_exits, **options)

    def attach_for(self, model: nn.Module, settings: RunSettings) -> EarlyExitModule:
        """Attach the exits of a run."""
        spec = settings.spec
        ee = self._attach(
            model,
            *self._placement(spec),
            branch=spec.branch,
            branch_options=spec.branch_options,
            method=settings.method,
            copy=settings.method.trains_backbone,
            seed=settings.seed,
        )
        if spec.start is not None:
            load_classifiers(ee, model, spec.start.format(seed=settings.seed))
        return ee

    def settings(self, spec: MethodSpec, seed: int, splits: Splits) -> RunSettings:
        """Return the settings of a run."""
        method = get_method(spec.method, **spec.options)
        epochs = self.epochs if spec.epochs is None else spec.epochs
        uncached = spec.augmented or method.trains_backbone
        train = splits.augmented if uncached else splits.train
        strategy, num_exits = self._placement(spec)
        shared = (
            num_exits,
            self.attach_options["blocks"],
            epochs,
            self.precision,
            [count_batches(loader) for loader in (train, splits.calibration)],
        )
        values = {**asdict(spec), "strategy": strategy, "common": shared}
        if method.trade_off == "cost_weight" and method.max_cost_weight != 1:
            values["cost_weights"] = cost_weights_of(method)
        counted = self.own_branch_costs, self.agreement
        if any(counted):
            values["counted"] = counted
        key = json.dumps(values, sort_keys=True, default=str)
        return RunSettings(spec, method, epochs, self.precision, seed, key, *counted)

    def _placement(self, spec: MethodSpec) -> tuple[str | tuple[Position, ...], int | None]:
        """Return strategy and number of exits; the shared number belongs to the shared strategy."""
        if spec.strategy is None:
            return self.strategy, self.num_exits
        return spec.strategy, None

    def _attach(
        self,
        model: nn.Module,
        strategy: str | tuple[Position, ...],
        num_exits: int | None,
        **options: Any,
    ) -> EarlyExitModule:
        positions = strategy if isinstance(strategy, str) else list(strategy)
        options |= self.attach_options
        return attach(model, positions, num_exits=num_exits, **options).eval()


def _check(specs: Sequence[MethodSpec], seeds: Sequence[int]) -> None:
    """Raise InputError or UnknownNameError for specs or seeds that cannot be compared."""
    methods = [get_method(spec.method, **spec.options) for spec in specs]
    pairs = zip(specs, methods, strict=True)
    labels = [label for spec, method in pairs for label in run_labels(spec.label, method)]
    repeated = len(set(labels)) < len(labels) or len(set(seeds)) < len(seeds)
    if not specs or not seeds or repeated:
        raise InputError(
            "A comparison needs at least one spec and one seed, with unique labels and seeds: got "
            f"{labels} and {list(seeds)}."
        )


@contextmanager
def _generators_restored(loaders: Iterable[object]) -> Iterator[None]:
    """Restore the state of the global generators and of those of the loaders at the end."""
    before = random_state(loaders)
    try:
        yield
    finally:
        set_random_state(before, loaders)


def _measure_backbone(ee: EarlyExitModule, test: Iterable[Any]) -> tuple[float, int]:
    """Return the accuracy with early exits disabled, and the number of images."""
    correct = samples = 0
    for images, labels in batches(test, "test", ee.spec.num_classes, ee.device):
        with torch.no_grad():
            logits = ee.run_with(images, NeverExit())[0]
        correct += int((logits.argmax(1) == labels).sum())
        samples += len(labels)
    return correct / samples, samples


def _print_run(run: MethodRun, backbone_accuracy: float) -> None:
    flops = run.flops_within(backbone_accuracy, 0.01)
    reached = "not reached" if flops is None else f"at {flops:.3f} of the FLOPs"
    print(
        f"{run.label}, seed {run.seed}: {len(run.points)} operating points, trained in "
        f"{run.trained_seconds:.0f} s, accuracy drop of 1 point {reached}",
        file=sys.stderr,
        flush=True,
    )
