"""Accuracy and cost against a threshold that all exits share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.evaluation.metrics import accuracy
from leenet_fx.evaluation.sample_records import SampleRecords
from leenet_fx.methods import get_method
from leenet_fx.policies import NeverExit, Policy, ThresholdPolicy, policy_scores
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.operating_point import OperatingPoint, weights_fingerprint

POINTS = 60
"""Largest number of thresholds on the curve, besides that in use."""


@dataclass(frozen=True)
class ThresholdPoint:
    """Accuracy and cost of one threshold for all exits.

    Attributes:
        threshold: on the scale of the policy.
        accuracy: overall accuracy (adaptive).
        relative_flops: mean FLOPs, relative to the backbone.
        relative_seconds: expected time, relative to the backbone, from `leenet_fx.profile`; None if
            not measured.
        shares: share of the samples at each exit and at the final classifier.
    """

    threshold: float
    accuracy: float
    relative_flops: float
    relative_seconds: float | None
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ThresholdCurve:
    """Accuracy and cost against the threshold, on the samples of an evaluation.

    Attributes:
        policy: name of the policy.
        confident_above: whether samples exit at or above a threshold; at or below it otherwise.
        thresholds: those in use: one for all exits, or one per exit; none if early exits are
            disabled.
        points: from the threshold under which most samples exit early to that under which none
            does.
    """

    policy: str
    confident_above: bool
    thresholds: tuple[float, ...]
    points: tuple[ThresholdPoint, ...]


def curve_policy(ee: EarlyExitModule) -> ThresholdPolicy | None:
    """Return the policy whose thresholds the curve varies.

    That is the policy in use; with early exits disabled, that of the last operating point that has
    thresholds. None for policies whose trade-off parameter is α.

    Args:
        ee: the network.
    """
    found: list[Policy] = [ee.policy]
    if isinstance(ee.policy, NeverExit):
        found = [point.build_policy() for point in reversed(ee.spec.operating_points)]
        method = ee.spec.method
        if method is not None:
            found.append(get_method(method.name, **method.options).policy_for(ee.num_exits))
    fitting = (policy for policy in found if isinstance(policy, ThresholdPolicy))
    policy = next(fitting, None)
    return None if policy is None or policy.alpha is not None else policy


def operating_point_in_use(ee: EarlyExitModule) -> OperatingPoint | None:
    """Return the last operating point for these weights whose policy is in use; None without one.

    Args:
        ee: the network.
    """
    matching = [p for p in ee.spec.operating_points if p.build_policy() == ee.policy]
    if not matching or matching[-1].fingerprint != weights_fingerprint(ee):
        return None
    return matching[-1]


def policy_confidence(
    policy: Policy | None, logits: Sequence[Tensor], gate_logits: Tensor
) -> Tensor | None:
    """Return (B, N) what a policy compares with thresholds, on the CPU; None without a policy.

    Args:
        policy: from `curve_policy`.
        logits: N+1 tensors (B, classes).
        gate_logits: (B, N).
    """
    if policy is None:
        return None
    columns = [
        policy.confidence(index, policy_scores(policy, index, logits, gate_logits))
        for index in range(gate_logits.shape[1])
    ]
    return torch.stack(columns, 1).cpu()


def threshold_curve(ee: EarlyExitModule, records: SampleRecords) -> ThresholdCurve | None:
    """Compute the curve from the scores of all samples at all exits.

    Args:
        ee: the network that the records were made with.
        records: of all samples.

    Returns:
        None if the records have no scores.
    """
    policy = curve_policy(ee)
    if policy is None or records.scores is None:
        return None
    in_use = policy.thresholds if policy == ee.policy else ()
    levels = _levels(records.scores)
    if len(set(in_use)) == 1:
        levels = sorted({*levels, policy.sign * in_use[0]})
    points = []
    for level in levels:
        varied = _with_confidence(policy, level)
        if varied is None:
            continue
        # Exits that a threshold disables cost nothing, so the costs depend on it.
        table = ee.costs_for(varied)
        exit_index = _exits(records.scores, level)
        correct = records.correct.gather(1, exit_index.unsqueeze(1)).squeeze(1)
        shares = exit_index.bincount(minlength=len(table)).double() / len(exit_index)
        flops = shares @ torch.tensor(table.relative("flops"), dtype=torch.float64)
        seconds = None
        if table.latency is not None:
            seconds = float(shares @ torch.tensor(table.relative("seconds"), dtype=torch.float64))
        points.append(
            ThresholdPoint(
                threshold=varied.thresholds[0],
                accuracy=accuracy(correct),
                relative_flops=float(flops),
                relative_seconds=seconds,
                shares=tuple(shares.tolist()),
            )
        )
    return ThresholdCurve(policy.name, policy.sign > 0, tuple(in_use), tuple(points))


def _levels(scores: Tensor) -> list[float]:
    """Return increasing confidences at equal steps of their order, then infinity."""
    values = scores[scores.isfinite()].unique()
    count = min(POINTS - 1, len(values))
    place = torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()
    return [*values[place].tolist(), math.inf]


def _exits(scores: Tensor, level: float) -> Tensor:
    """Return the first exit (n,) whose score is at least a level; N if there is none."""
    reached = scores >= level
    last = torch.ones(len(scores), 1, dtype=torch.bool)
    return torch.cat([reached, last], 1).int().argmax(1)


def _with_confidence(policy: ThresholdPolicy, level: float) -> ThresholdPolicy | None:
    """Return the policy with one threshold for all exits; None if it takes no such threshold."""
    try:
        return policy.with_confidence(level)
    except InputError:
        return None
