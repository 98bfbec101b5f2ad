"""The cheapest thresholds whose risk is bounded: a promise about images not yet seen.

Thresholds are chosen along a path, from the safest to the cheapest. What is bounded is the risk of
the population that the calibration samples are drawn from. The average over a finite test set
scatters around it, so that it exceeds a correct bound more often than the promise says.

The path must not depend on the samples that the bound is computed from, or the bound does not
hold: `budget_path` is for other samples, with or without labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from leenet_fx.calibration.bounds import check_level, get_bound
from leenet_fx.calibration.solvers import exit_indices_at, solve_budgets
from leenet_fx.errors import InputError
from leenet_fx.registry import unknown_name

Rule: TypeAlias = Literal["fixed-sequence", "bonferroni", "expectation"]

RULES = ("fixed-sequence", "bonferroni", "expectation")

MAX_SAMPLES = 10**6
"""Number of samples above which `samples_needed` gives up."""


@dataclass(frozen=True)
class RiskCertificate:
    """The operating point that was chosen, and what is promised about it.

    Attributes:
        index: of the point in the path; None if none is certified and early exits are disabled.
        thresholds: N confidence thresholds; math.inf disables an exit.
        estimate: mean loss of the calibration samples; 0 without early exits.
        bound: the risk is at most this. For the rule "expectation", the corrected mean that was
            compared with the target, which bounds nothing for this one calibration set.
        target: highest accepted risk.
        level: the confidence level of the bound, in (0, 1); None for the rule "expectation".
        samples: number of calibration samples.
        rule: how the point was chosen.
        samples_needed: number of samples with which the safest point of the path would have been
            certified if losses are distributed as in these; None if a point is certified, or if
            no number is enough.
    """

    index: int | None
    thresholds: tuple[float, ...]
    estimate: float
    bound: float
    target: float
    level: float | None
    samples: int
    rule: Rule
    samples_needed: int | None

    @property
    def certified(self) -> bool:
        """Whether early exits are certified; if not, the final classifier predicts all samples."""
        return self.index is not None


def budget_path(
    confidence: Tensor,
    costs: Tensor | Sequence[float],
    *,
    solver: str = "common",
    steps: int = 100,
) -> list[list[float]]:
    """Return thresholds for decreasing budgets, from almost no early exits to all at the first.

    Args:
        confidence: (n, N) of samples that are *not* among those that a bound is computed from.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        solver: "common", one threshold for all exits; "exponential", shares ∝ ρᵏ.
        steps: number of budgets, equally spaced below the cost of the final classifier.

    Returns:
        Distinct lists of N thresholds, the most expensive first.

    Raises:
        InputError: shapes or values that do not fit, or less than one step.
        UnknownNameError: no such solver.
    """
    budgets = path_budgets(costs, steps)
    path = dict.fromkeys(map(tuple, solve_budgets(solver, confidence, costs, budgets)))
    return [list(thresholds) for thresholds in path]


def path_budgets(costs: Tensor | Sequence[float], steps: int) -> list[float]:
    """Return decreasing budgets, from just below the final classifier's cost to the first exit's.

    Args:
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        steps: number of budgets, equally spaced.

    Raises:
        InputError: less than one step.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"Expected a number of budgets of at least 1, got {steps!r}.")
    first, last = float(costs[0]), float(costs[-1])
    return [last - (last - first) * step / steps for step in range(1, steps)] + [first]


def control_risk(
    losses: Tensor,
    confidence: Tensor,
    path: Sequence[Sequence[float]],
    target: float,
    *,
    limits: tuple[float, float],
    generator: torch.Generator,
    level: float = 0.95,
    bound: str = "betting",
    rule: Rule = "fixed-sequence",
) -> RiskCertificate:
    """Choose the cheapest point of a path whose risk is certified to be at most a target.

    Rules:
        "fixed-sequence": points are tested from the safest on; the last before the first failure
            is chosen, also if cheaper ones would pass again. With probability `level` its risk is
            at most `target`. Whether a bound is compared with the target (UCB, Bates et al. 2021)
            or a p-value with 1−level (learn then test, Angelopoulos et al. 2021), the points that
            pass are the same; the second proof needs no monotone risk.
        "bonferroni": all points are tested at the level 1−(1−level)/len(path), and the cheapest
            that passes is chosen. For paths along which the risk rises and falls.
        "expectation": conformal risk control (Angelopoulos et al. 2024), R̂ ≤ ((n+1)·target − B)/n
            with the largest loss B, for a point and all safer ones. The risk is at most `target`
            *on average* over calibration sets, if losses do not fall along the path: any one
            calibration set may well break it, and `level` has no meaning.

    Args:
        losses: (n, N+1) loss of each sample at each exit and, 0, at the final classifier. Samples
            are independent draws from the population.
        confidence: (n, N) of the same samples.
        path: lists of N thresholds from the safest to the cheapest, chosen without these samples.
        target: highest accepted risk, in the unit of the losses.
        limits: smallest and largest possible loss.
        generator: shuffles the samples, since a bound may depend on their order.
        level: confidence level in (0, 1).
        bound: name of a registered bound. "binomial" is for losses of two values.
        rule: how points are tested.

    Returns:
        The certificate. If no point passes, early exits are disabled: relative to the final
        classifier that risks nothing, whatever the number of samples.

    Raises:
        InputError: shapes or values that do not fit.
        UnknownNameError: no such rule or bound.
    """
    _check(losses, confidence, path, target, limits)
    check_level(level)
    order = torch.randperm(len(losses), generator=generator)
    losses, confidence = losses.detach().cpu().double()[order], confidence.detach().cpu()[order]
    samples = len(losses)
    upper = _upper_bound(rule, bound, level, limits, len(path))

    def points() -> Iterator[tuple[float, float]]:
        for thresholds in path:
            exits = exit_indices_at(confidence, thresholds)
            chosen = losses.gather(1, exits.unsqueeze(1)).squeeze(1)
            yield float(chosen.mean()), upper(chosen)

    passed: tuple[int, float, float] | None = None
    for index, (estimate, value) in enumerate(points()):
        if value <= target:
            passed = (index, estimate, value)
        elif rule != "bonferroni":
            break
    kept = None if rule == "expectation" else level
    if passed is not None:
        index, estimate, value = passed
        return RiskCertificate(
            index, tuple(path[index]), estimate, value, target, kept, samples, rule, None
        )
    exits = exit_indices_at(confidence, path[0])
    safest = losses.gather(1, exits.unsqueeze(1)).squeeze(1)
    needed = _needed(safest, upper, target)
    disabled = (math.inf,) * confidence.shape[1]
    return RiskCertificate(None, disabled, 0.0, 0.0, target, kept, samples, rule, needed)


def samples_needed(
    risk: float,
    level: float = 0.95,
    *,
    limits: tuple[float, float],
    bound: str = "betting",
    losses: Tensor | None = None,
) -> int | None:
    """Return how many samples it takes to certify a risk.

    Args:
        risk: highest accepted risk, in the unit of the losses.
        level: confidence level in (0, 1).
        limits: smallest and largest possible loss.
        bound: name of a registered bound.
        losses: (n,) losses whose distribution is assumed; None for the best case, in which no
            sample loses anything.

    Returns:
        The number, to about 1 %; None if the assumed losses have a higher mean than `risk`, or if
        `MAX_SAMPLES` are not enough.

    Raises:
        InputError: values that do not fit.
        UnknownNameError: no such bound.
    """
    check_level(level)
    _check_target(risk, limits)
    upper = _upper_bound("fixed-sequence", bound, level, limits, 1)
    return _needed(torch.zeros(1) if losses is None else losses, upper, risk)


def _upper_bound(
    rule: Rule, bound: str, level: float, limits: tuple[float, float], points: int
) -> Callable[[Tensor], float]:
    """Return the function of losses (n,) that a rule compares with the target."""
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    compute = get_bound(bound)
    if rule == "expectation":
        return lambda losses: float((losses.sum() + limits[1]) / (len(losses) + 1))
    if rule == "bonferroni":
        level = 1 - (1 - level) / points
    return lambda losses: compute(losses, level, limits)


def _needed(losses: Tensor, upper: Callable[[Tensor], float], target: float) -> int | None:
    """Return for how many samples the bound of repeated losses meets the target."""
    losses = losses.double()
    if float(losses.mean()) >= target:
        return None

    def enough(samples: int) -> bool:
        # The n-quantiles of the losses in a fixed random order have their distribution.
        places = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples * len(losses)
        ordered = losses.sort().values[places.long().clamp(max=len(losses) - 1)]
        shuffled = ordered[torch.randperm(samples, generator=torch.Generator().manual_seed(0))]
        return upper(shuffled) <= target

    high = 1
    while not enough(high):
        high *= 2
        if high > MAX_SAMPLES:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(
    losses: Tensor,
    confidence: Tensor,
    path: Sequence[Sequence[float]],
    target: float,
    limits: tuple[float, float],
) -> None:
    """Raise InputError if the arguments of `control_risk` do not fit together."""
    if confidence.ndim != 2 or losses.ndim != 2 or not len(losses):
        raise InputError(
            "Expected losses (n, N+1) and confidences (n, N) of n ≥ 1 samples, got "
            f"{tuple(losses.shape)} and {tuple(confidence.shape)}."
        )
    if losses.shape != (len(confidence), confidence.shape[1] + 1):
        raise InputError(
            f"Expected losses of {len(confidence)} samples at {confidence.shape[1]} exits and the "
            f"final classifier, got {tuple(losses.shape)}."
        )
    if not bool((losses[:, -1] == 0).all()):
        raise InputError(
            "Losses are relative to the final classifier, so the last column must be 0: subtract "
            "the loss of the final classifier."
        )
    if not path:
        raise InputError("Expected at least one list of thresholds in the path, got none.")
    _check_target(target, limits)


def _check_target(target: float, limits: tuple[float, float]) -> None:
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not target > 0:
        raise InputError(
            f"Expected an accepted risk above 0, for instance 0.01, got {target!r}: no number of "
            "samples can certify that early exits lose nothing."
        )
    if target > limits[1]:
        raise InputError(
            f"The accepted risk is {target!r}, but no loss exceeds {limits[1]:g}: there is nothing "
            "to certify."
        )
