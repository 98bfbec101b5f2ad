"""The run of one method in a comparison: fit it and measure its frontier."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from leenet_fx.calibration.budgets import monotone_costs
from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    cached_exit_indices,
    compute_outputs,
    confidences,
)
from leenet_fx.calibration.searched import Problem, searched_budget
from leenet_fx.calibration.solvers import get_solver
from leenet_fx.errors import InputError, first_line
from leenet_fx.evaluation.comparison import MethodSpec
from leenet_fx.evaluation.cost_weights import ALPHAS, cost_weights_of
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.evaluation.metrics import accuracy
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.methods import Method
from leenet_fx.policies import Patience, Policy, ThresholdPolicy
from leenet_fx.storage.exits import load
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.fit import fit

SWEPT = ", thresholds"
"""Suffix of the label of a second run: the same networks, read by a sweep of their thresholds."""

SWEEP_STEPS = 20
"""Number of steps between the budgets of that sweep, for each cost weight."""

BUDGET_STEPS = {"threshold": 100, "exit_shares": 16, "schedule": 16}
"""Number of steps between the budgets that thresholds are solved for, by trade-off parameter."""


class Splits:
    """The images of a comparison, with the cached features of the network that last used them.

    Attributes:
        train: (images, labels) without augmentation.
        calibration: (images, labels) that gates and thresholds are fitted on.
        test: (images, labels) to measure on.
        augmented: the training images with augmentation.
    """

    def __init__(
        self,
        train: Iterable[Any],
        calibration: Iterable[Any],
        test: Iterable[Any],
        augmented: Iterable[Any],
    ) -> None:
        self.train = train
        self.calibration = calibration
        self.test = test
        self.augmented = augmented
        self._caches: dict[str, FeatureCache] = {}

    @property
    def loaders(self) -> tuple[Iterable[Any], ...]:
        """All loaders."""
        return self.train, self.calibration, self.test, self.augmented

    def cached(self, ee: EarlyExitModule, name: str) -> FeatureCache:
        """Return cached features of "train", "calibration" or "test"."""
        cache = self._caches.get(name)
        if cache is not None and not cache.fits(ee):
            self._caches.pop(name).close()
            cache = None
        if cache is None:
            cache = self._caches[name] = cache_features(
                ee, getattr(self, name), name=f"{name} images"
            )
        return cache

    def close(self) -> None:
        """Free the memory and files of all caches."""
        for cache in self._caches.values():
            cache.close()
        self._caches.clear()


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run.

    Attributes:
        spec: what is compared.
        method: its method, with its options.
        epochs: number of epochs of each phase, or by phase name.
        precision: of training, as for `fit`.
        seed: random seed.
        key: the settings as JSON, without the seed.
        own_branch_costs: whether an exit costs no branch but its own.
        agreement: whether accuracy is agreement with the backbone.
    """

    spec: MethodSpec
    method: Method
    epochs: int | Mapping[str, int]
    precision: str | None
    seed: int
    key: str
    own_branch_costs: bool = False
    agreement: bool = False


OnPoint: TypeAlias = Callable[[FrontierPoint, EarlyExitModule], None]
"""Called with a point of a frontier and its network, with the policy of the point."""


def run_labels(label: str, method: Method) -> tuple[str, ...]:
    """Return the labels of the runs of a spec.

    Args:
        label: of the spec.
        method: its method.
    """
    return (label, label + SWEPT) if method.trade_off == "cost_weight" else (label,)


def run_method(
    ee: EarlyExitModule, settings: RunSettings, splits: Splits, on_point: OnPoint | None = None
) -> tuple[MethodRun, ...]:
    """Fit a method and measure its frontier.

    A method that is trained for several cost weights has two frontiers: by its own rule, with one
    point for each cost weight, and by a sweep of thresholds on all of its networks.

    Args:
        ee: a network with the method's exits, which is trained.
        settings: what to fit, and how.
        splits: the images.
        on_point: called with each point and the network of it.

    Returns:
        A run for each of `run_labels`.

    Raises:
        InputError: the method does not train a new final classifier.
        InputError, TrainingError: as `fit`.
    """
    method = settings.method
    _check_final_classifier(ee, settings)
    trainer = _Trainer(ee, settings, splits)
    epochs = phase_epochs(method, settings.epochs, ee.spec.classifier_is_new)
    by_cost_weight = method.trade_off == "cost_weight"
    cost_weights = cost_weights_of(method)
    if by_cost_weight:
        # Only the last phase depends on the cost weight, so the others are trained once.
        last = list(epochs)[-1]
        if len(epochs) > 1:
            trainer.train(method.cost_weight, {**epochs, last: 0})
        epochs = {phase: count if phase == last else 0 for phase, count in epochs.items()}
    start = copy.deepcopy(ee.state_dict())
    labels = run_labels(settings.spec.label, method)
    points: dict[str, list[FrontierPoint]] = {label: [] for label in labels}
    backbone_accuracy = math.nan
    for cost_weight in cost_weights:
        ee.load_state_dict(start)
        trainer.train(cost_weight, epochs)
        calibration = compute_outputs(ee, splits.cached(ee, "calibration"))
        test = compute_outputs(ee, splits.cached(ee, "test"))
        if settings.agreement:
            test = replace(test, labels=test.logits[-1].argmax(1))
        final = test.labels.new_full(test.labels.shape, ee.num_exits)
        backbone_accuracy = accuracy(test.is_correct(final))
        readings: list[list[tuple[Policy, float]]] = []
        if by_cost_weight:
            swept = _swept(ee, calibration, SWEEP_STEPS)
            readings.append([(ee.policy, cost_weight)])
            readings.append([(at, cost_weight) for at, _ in swept])
        else:
            readings.append(list(_frontier(ee, method, calibration)))
        policy = ee.policy
        for label, found in zip(labels, readings, strict=True):
            for at, value in found:
                points[label].append(_measure(ee, at, test, value, settings.own_branch_costs))
                if on_point is not None:
                    ee.policy = at
                    on_point(points[label][-1], ee)
        ee.policy = policy
    return tuple(
        MethodRun(
            label=label,
            method=settings.spec.method,
            seed=settings.seed,
            trade_off=method.trade_off if label == settings.spec.label else "threshold",
            backbone_accuracy=backbone_accuracy,
            exits=ee.spec.placement.names,
            trained_seconds=trainer.seconds,
            points=tuple(points[label]),
            key=settings.key,
        )
        for label in labels
    )


def phase_epochs(
    method: Method, epochs: int | Mapping[str, int], train_final: bool
) -> dict[str, int]:
    """Return the number of epochs of each phase that has parameters to train.

    Args:
        method: the method.
        epochs: of each phase, or by phase name; phases that are not in it take those of "exits".
        train_final: whether the final classifier is trained.
    """
    names = [
        phase.name for phase in method.phases if phase.parameter_groups != {"final"} or train_final
    ]
    if isinstance(epochs, Mapping):
        return {name: epochs.get(name, epochs.get("exits", 10)) for name in names}
    return dict.fromkeys(names, epochs)


def load_classifiers(ee: EarlyExitModule, model: nn.Module, folder: str) -> None:
    """Copy the necks and heads of a saved network with the same exits into `ee`.

    Raises:
        InputError: the saved network has other exits or other branches.
        StorageError: as `load`.
    """
    saved = load(folder, model)
    for branch, other in zip(ee.exits.branches(), saved.exits.branches(), strict=False):
        for part in ("neck", "head"):
            if not hasattr(branch, part) or not hasattr(other, part):
                raise InputError(
                    f"'{folder}': only branches with a neck and a head can start from a saved "
                    "network."
                )
            try:
                getattr(branch, part).load_state_dict(getattr(other, part).state_dict())
            except RuntimeError as error:
                raise InputError(f"'{folder}': {first_line(error)}") from error
    if saved.spec.placement.names != ee.spec.placement.names:
        raise InputError(
            f"'{folder}' has exits after {saved.spec.placement.names}, expected "
            f"{ee.spec.placement.names}."
        )


class _Trainer:
    """Repeated calls of `fit` on the splits of a comparison.

    Attributes:
        seconds: training time so far.
    """

    def __init__(self, ee: EarlyExitModule, settings: RunSettings, splits: Splits) -> None:
        self.seconds = 0.0
        self._ee = ee
        self._settings = settings
        self._splits = splits

    def train(self, cost_weight: float, epochs: Mapping[str, int]) -> None:
        """Fit for one cost weight."""
        settings, splits = self._settings, self._splits
        method, spec = settings.method, settings.spec
        backbone = method.trains_backbone
        # While the backbone trains, its features change and cannot be cached.
        calibration: Any = splits.calibration if backbone else self._cached("calibration")
        uncached = backbone or spec.augmented
        train: Any = splits.augmented if uncached else self._cached("train")
        # Caches are shared by all methods, so neither their random draws nor the time to build
        # them count for this one.
        _seed_generators(settings.seed, splits.loaders)
        start = time.perf_counter()
        fit(
            self._ee,
            train,
            calibration=calibration,
            method=method,
            alpha=cost_weight if method.has_gates else None,
            epochs=epochs,
            lr=spec.lr,
            precision=settings.precision,
            seed=settings.seed,
            progress=False,
        )
        self.seconds += time.perf_counter() - start

    def _cached(self, name: str) -> FeatureCache:
        return self._splits.cached(self._ee, name)


def _seed_generators(seed: int, loaders: Iterable[object]) -> None:
    """Seed the global generators and those of the loaders."""
    import numpy as np

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    for loader in loaders:
        generator = getattr(loader, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _check_final_classifier(ee: EarlyExitModule, settings: RunSettings) -> None:
    """Raise InputError if the final classifier is new and the method does not train it."""
    groups = {group for phase in settings.method.phases for group in phase.parameter_groups}
    if ee.spec.classifier_is_new and not groups & {"final", "backbone"}:
        raise InputError(
            f"Method '{settings.spec.method}' does not train the final classifier, and this one is "
            "new."
        )


def _frontier(
    ee: EarlyExitModule, method: Method, calibration: CachedOutputs
) -> Iterator[tuple[Policy, float]]:
    """Yield the policies of a fitted network's frontier, with the trade-off parameter of each."""
    policy = ee.policy
    if method.trade_off == "alpha":
        for alpha in ALPHAS:
            yield policy.with_alpha(alpha), alpha
        return
    if method.trade_off == "patience":
        for patience in range(1, max(ee.num_exits, 2)):
            yield Patience(patience), patience
        return
    if method.trade_off == "schedule":
        assert isinstance(policy, ThresholdPolicy)
        yield from _scheduled(ee, policy, calibration)
        return
    solver = "exponential" if method.trade_off == "exit_shares" else "common"
    yield from _swept(ee, calibration, BUDGET_STEPS[method.trade_off], solver)


def _swept(
    ee: EarlyExitModule, calibration: CachedOutputs, steps: int, solver: str = "common"
) -> Iterator[tuple[ThresholdPolicy, float]]:
    """Yield the network's policy with the thresholds of evenly spaced budgets, and the budgets."""
    policy = ee.policy
    assert isinstance(policy, ThresholdPolicy)
    solve = get_solver(solver)
    confidence = confidences(ee, policy, calibration)
    costs = monotone_costs(ee)
    for step in range(steps + 1):
        budget = costs[0] + (costs[-1] - costs[0]) * step / steps
        thresholds = solve(confidence, costs, budget)
        yield policy.with_confidence(thresholds), budget


def _scheduled(
    ee: EarlyExitModule, policy: ThresholdPolicy, calibration: CachedOutputs
) -> Iterator[tuple[Policy, float]]:
    """Yield the policies of EENet's scheduler, fitted for each budget, and the budgets."""
    costs = monotone_costs(ee, policy=policy)
    problem = Problem(ee, policy, calibration, "flops")
    steps = BUDGET_STEPS["schedule"]
    for step in range(steps + 1):
        budget = costs[0] + (costs[-1] - costs[0]) * step / steps
        generator = torch.Generator().manual_seed(0)
        chosen, thresholds = searched_budget("eenet", problem, budget, generator)
        yield chosen.with_confidence(thresholds), budget


def _measure(
    ee: EarlyExitModule, policy: Policy, test: CachedOutputs, value: float, own_branch: bool
) -> FrontierPoint:
    """Measure the operating point of a policy."""
    exit_index: Tensor = cached_exit_indices(ee, policy, test)
    shares = exit_index.bincount(minlength=ee.num_exits + 1).double() / len(exit_index)
    costs = shares.new_tensor(ee.costs_for(policy).relative(own_branch=own_branch))
    return FrontierPoint(
        value=float(value),
        accuracy=accuracy(test.is_correct(exit_index)),
        relative_flops=float((shares * costs).sum()),
        shares=tuple(shares.tolist()),
    )
