"""calibrate: the cheapest thresholds that keep a promise, or meet a budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from leenet_fx.calibration.bounds import check_level
from leenet_fx.calibration.budgets import (
    backbone_cost,
    budget_thresholds,
    policy_with_thresholds,
)
from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    cached_exit_indices,
    confidences,
    outputs_of_data,
)
from leenet_fx.calibration.exit_subsets import (
    SubsetCosts,
    given_exits,
    savings,
    selected_for_budget,
    selected_for_risk,
    spread,
)
from leenet_fx.calibration.expectation import Question, Target, describe, not_certified
from leenet_fx.calibration.risk_control import RiskCertificate, budget_path, control_risk
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.searched import (
    SEARCHED,
    Problem,
    check_solver,
    searched_budget,
    searched_path,
)
from leenet_fx.calibration.seen_images import image_statistics, warn_if_evaluated
from leenet_fx.calibration.temperature import check_tempered, tempered
from leenet_fx.data.class_names import check_class_names
from leenet_fx.errors import InputError
from leenet_fx.features.batches import check_loader, split_batch
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.policies import NeverExit, Policy, ThresholdPolicy, policy_to_dict
from leenet_fx.policies.counting import CountingPolicy
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import (
    OperatingPoint,
    weights_fingerprint,
)

logger = logging.getLogger("leenet_fx")

PATH_SHARE = 0.1
"""Share of the calibration images from which exits and the thresholds to be tested are taken.

They cannot be taken from the images that test them."""

SEARCH_SHARE = 1 / 3
"""The same share for solvers that read classes, which fit more than one number."""

FITTED_SHARE = 2 / 3
"""Share of the images on which a solver that reads classes meets a budget.

What to expect is estimated from the others: on its own images it would be too good."""

FEWEST = 10
"""Number of calibration images below which nothing is calibrated."""


def calibrate(
    ee: EarlyExitModule,
    data: Iterable[Any] | FeatureCache | CachedOutputs,
    *,
    max_drop: float | None = None,
    max_disagreement: float | None = None,
    budget: float | None = None,
    confidence: float = 0.95,
    per_class: bool = False,
    exits: Literal["auto", "all"] | Sequence[int | str] | None = None,
    solver: str = "common",
    cost: str = "flops",
    temperatures: bool = False,
    name: str | None = None,
    seed: int = 0,
) -> OperatingPoint:
    """Choose the thresholds of the policy, set them, and say what to expect.

    With `max_drop` or `max_disagreement`, thresholds are the cheapest that are certified: with
    probability `confidence`, the accuracy on new images of the same distribution is at most
    `max_drop` below the backbone's (fixed-sequence testing with a betting bound; see
    `leenet_fx.calibration.risk_control`). The promise is about the distribution: on a finite test
    set the drop scatters around its mean. If nothing can be certified, early exits are disabled.

    With `budget`, thresholds are those whose mean cost on `data` is just within the budget; nothing
    is promised about accuracy. Solvers that read classes meet it on two thirds of the images, and
    what to expect is estimated from the rest.

    An exit that is not used has an infinite threshold, and its branch does not run. Exits are
    chosen on a tenth of the images, and the promise is tested on the others, so it holds whatever
    the choice; see
    `leenet_fx.calibration.exit_subsets`.

    Args:
        ee: a fitted network.
        data: images and labels on which nothing was fitted, in any order; or a feature cache of
            them; or their outputs (`leenet_fx.calibration.cached_outputs.outputs_of_data`), from
            which many points are found without running the network again. `max_disagreement` and
            `budget` take images alone too.
        max_drop: highest accepted loss of accuracy, as a fraction: 0.01 is one percentage point.
        max_disagreement: highest accepted share of images whose predicted class differs from the
            backbone's, as a fraction. It bounds the drop too.
        budget: mean cost relative to the backbone, in (0, 1].
        confidence: confidence level of the promise and of the intervals, in (0, 1).
        per_class: whether `max_drop` is promised for the images of each class.
        exits: the exits to use: "all"; some of them, by index or by the name of the block before;
            "auto", the fewest with which the mean cost is at most 0.1 % of the backbone's above
            that of all. None takes "auto" for networks attached with strategy="auto", and for
            others "all"; and "all" where the decision at an exit depends on other exits.
        solver: "common", one threshold for all exits; "exponential", shares of samples ∝ ρᵏ;
            "per-exit", a threshold for each exit, held out against overfitting; "eenet", EENet's
            learned scores instead of the policy's, `LearnedScore`. The last two read classes, of
            the labels or without labels the backbone's predictions; with one threshold for all
            exits, promises are usually cheaper.
        cost: "flops", "params", "bytes", or "seconds" as `leenet_fx.profile` measured.
        temperatures: whether class probabilities are softmax(ŷ/τ), with a temperature τ for each
            classifier that minimises the cross-entropy on the images that thresholds are taken
            from (temperature scaling, Guo et al. 2017). They are kept in the policy, and serve
            `predict`, whose confidence is then meant as a probability. False keeps those that the
            policy has.
        name: of the operating point; None takes a name from the target, such as "max_drop=0.01".
        seed: of the order in which images are tested.

    Returns:
        The operating point, which is one of `ee.operating_points` and in use.

    Raises:
        InputError: not exactly one target; values out of range; a policy without thresholds;
            labels are missing, or of one class; too few images; scores that are NaN; exits that
            cannot be chosen.
        UnknownNameError: no such solver, cost or exit.
    """
    target, limit = _target(max_drop, max_disagreement, budget, ee, cost)
    check_level(confidence)
    if per_class and target != "max_drop":
        raise InputError(f"per_class=True is for max_drop, got {target}={limit!r}.")
    policy = policy_with_thresholds(ee)
    check_solver(solver, policy)
    kept = given_exits(ee, policy, exits, solver)
    costs = SubsetCosts(ee, policy, cost)
    outputs = _outputs(ee, data, labelled=target == "max_drop")
    _check_outputs(outputs, target)
    images = image_statistics(outputs.logits[-1].float().softmax(1).amax(1))
    warn_if_evaluated(ee, images)
    if temperatures:
        check_tempered(policy, solver, outputs.labels)
    scores = confidences(ee, policy, outputs)
    _check_scores(scores)
    question = Question(name or f"{target}={limit:g}", target, limit, confidence, solver, cost)
    generator = torch.Generator().manual_seed(seed)
    problem = Problem(ee, policy, outputs, cost)
    certificate = None
    if target != "budget":
        policy, certificate = certify(
            problem, scores, kept, question, per_class, generator, temperatures
        )
        thresholds = list(certificate.thresholds)
    elif solver in SEARCHED:
        order = torch.randperm(len(scores), generator=generator)
        count = round(FITTED_SHARE * len(order))
        seen = problem.select(order[:count], temperatures)
        policy, thresholds = searched_budget(solver, seen, limit, generator)
        outputs = outputs.select(order[count:])
    else:
        if temperatures:
            policy = tempered(policy, outputs)
            scores = confidences(ee, policy, outputs)
        kept = kept or selected_for_budget(policy, scores, limit, costs)
        found = budget_thresholds(policy, scores[:, kept], costs.monotone(kept), limit, solver)
        thresholds = spread(found, kept, ee.num_exits)
    disabled = all(value == math.inf for value in thresholds)
    chosen: Policy = NeverExit() if disabled else policy.with_confidence(thresholds)
    point = describe(
        question,
        policy_to_dict(chosen),
        certificate,
        outputs,
        cached_exit_indices(ee, chosen, outputs),
        ee.costs_for(chosen).relative(cost),
        _savings(replace(problem, policy=policy, outputs=outputs), thresholds),
        weights_fingerprint(ee),
        images,
    )
    if certificate is not None and not certificate.certified:
        logger.warning("%s", not_certified(certificate, target))
    others = tuple(other for other in ee.spec.operating_points if other.name != point.name)
    ee.policy = chosen
    ee.spec = replace(ee.spec, operating_points=(*others, point))
    return point


def _target(
    max_drop: float | None,
    max_disagreement: float | None,
    budget: float | None,
    ee: EarlyExitModule,
    cost: str,
) -> tuple[Target, float]:
    """Return name and value of the one target that was given."""
    given: dict[Target, float | None] = {
        "max_drop": max_drop,
        "max_disagreement": max_disagreement,
        "budget": budget,
    }
    found = [(name, value) for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise InputError(
            "Expected exactly one of max_drop, max_disagreement and budget, got "
            f"{', '.join(name for name, _ in found) or 'none'}."
        )
    name, value = found[0]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        hint = " One percentage point is 0.01." if name == "max_drop" else ""
        if name == "budget":
            hint = f" It is a share of the backbone's cost{backbone_cost(ee, cost)}."
        raise InputError(f"{name} must be a fraction above 0 and at most 1, got {value!r}.{hint}")
    return name, float(value)


def _outputs(
    ee: EarlyExitModule, data: Iterable[Any] | FeatureCache | CachedOutputs, labelled: bool
) -> CachedOutputs:
    """Return the outputs of all exits for the calibration images."""
    if not isinstance(data, (FeatureCache, CachedOutputs)):
        check_class_names(ee, ("calibration", data))
        labelled = labelled or _has_labels(data, ee.spec.num_classes)
    return outputs_of_data(ee, data, labelled=labelled)


def _has_labels(data: Iterable[Any], num_classes: int) -> bool:
    """Return whether the first batch has class indices, so that accuracies can be told."""
    try:
        _, labels = split_batch(next(iter(check_loader(data, "data"))), "data")
    except (InputError, StopIteration):
        return False
    return bool(((labels >= 0) & (labels < num_classes)).all())


def _check_outputs(outputs: CachedOutputs, target: Target) -> None:
    samples = len(outputs.labels)
    if samples < FEWEST:
        raise InputError(f"Expected at least {FEWEST} calibration images, got {samples}.")
    first = int(outputs.labels[0])
    if first >= 0 and len(outputs.labels.unique()) < 2:
        message = (
            f"All {samples} calibration images have the label {first}: calibrate on images of all "
            "classes, as the network will meet them."
        )
        if target == "max_drop":
            raise InputError(message)
        logger.warning("%s", message)


def _check_scores(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        exit_index = int((~scores.isfinite()).any(0).nonzero()[0])
        raise InputError(
            f"The confidence of exit {exit_index} is NaN or infinite for some images: check the "
            "images and the weights."
        )
    if len(scores) > 1 and bool((scores == scores[0]).all()):
        raise InputError(
            "The confidence of every exit is the same for all images, so no threshold tells them "
            "apart: fit the exits first."
        )


def certify(
    problem: Problem,
    scores: Tensor,
    kept: list[int] | None,
    question: Question,
    per_class: bool,
    generator: torch.Generator,
    temperatures: bool = False,
) -> tuple[ThresholdPolicy, RiskCertificate]:
    """Return the policy and its cheapest certified thresholds; see `calibrate`."""
    risk = get_risk("accuracy-gap" if question.target == "max_drop" else "disagreement")
    outputs = problem.outputs
    order = torch.randperm(len(scores), generator=generator)
    share = SEARCH_SHARE if question.solver in SEARCHED else PATH_SHARE
    count = max(1, round(share * len(order)))
    chosen, tested = order[:count], order[count:]
    number = scores.shape[1]
    seen = problem.select(chosen, temperatures)
    policy = seen.policy
    if temperatures:
        scores = confidences(problem.ee, policy, outputs)
    if question.solver in SEARCHED:
        policy, path = searched_path(question.solver, seen, generator)
        if policy is not problem.policy:
            scores = confidences(problem.ee, policy, outputs)
    else:
        costs = SubsetCosts(problem.ee, policy, question.cost_kind)
        if kept is None:
            losses = risk.losses(seen.outputs)
            kept = selected_for_risk(scores[chosen], losses, question.limit, costs)
        if isinstance(policy, CountingPolicy):
            path = [[float(count)] * len(kept) for count in range(number, 0, -1)]
        else:
            columns = scores[chosen][:, kept]
            path = budget_path(columns, costs.monotone(kept), solver=question.solver)
        path = [spread(thresholds, kept, number) for thresholds in path]
    losses, tested_scores = risk.losses(outputs.select(tested)), scores[tested]

    def certificate_of(rows: Tensor | slice, level: float) -> RiskCertificate:
        return control_risk(
            losses[rows],
            tested_scores[rows],
            path,
            question.limit,
            limits=risk.limits,
            generator=generator,
            level=level,
        )

    if not per_class:
        return policy, certificate_of(slice(None), question.level)
    labels = outputs.labels[tested]
    classes = labels.unique().tolist()
    # The union bound: all classes keep the promise together with probability `level`.
    each = 1 - (1 - question.level) / len(classes)
    found = [certificate_of(labels == label, each) for label in classes]
    # Tests end at the first failure, so that the safest of the points is certified for each class.
    strictest = min(found, key=lambda one: -1 if one.index is None else one.index)
    for_all = replace(strictest, level=question.level, bound=question.limit, samples=len(tested))
    return policy, for_all


def _savings(problem: Problem, thresholds: Sequence[float]) -> tuple[float, ...]:
    scores = confidences(problem.ee, problem.policy, problem.outputs)
    return savings(scores, thresholds, SubsetCosts(problem.ee, problem.policy, problem.cost))
