"""What `calibrate` was asked for, and what is to be expected of the thresholds it chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.calibration.intervals import mean_interval, share_interval
from leenet_fx.calibration.risk_control import MAX_SAMPLES, RiskCertificate
from leenet_fx.policies import NeverExit
from leenet_fx.surgery.operating_point import ImageStatistics, OperatingPoint

Target = Literal["max_drop", "max_disagreement", "budget"]


@dataclass(frozen=True)
class Question:
    """What was asked for; the attributes are those of `OperatingPoint`."""

    name: str
    target: Target
    limit: float
    level: float
    solver: str
    cost_kind: str


def describe(
    question: Question,
    policy: dict[str, Any],
    certificate: RiskCertificate | None,
    outputs: CachedOutputs,
    exits: Tensor,
    costs: tuple[float, ...],
    saved: tuple[float, ...],
    fingerprint: str,
    images: ImageStatistics | None,
) -> OperatingPoint:
    """Return the operating point with estimates from all calibration images."""
    samples, level = len(exits), question.level
    disabled = policy["name"] == NeverExit.name
    relative = torch.tensor([*costs[:-1], 1.0 if disabled else costs[-1]], dtype=torch.float64)
    predicted = torch.stack([logits.argmax(1) for logits in outputs.logits], 1)
    final = predicted[:, -1]
    taken = predicted.gather(1, exits.unsqueeze(1)).squeeze(1)
    accuracy = backbone = drop = None
    if bool((outputs.labels >= 0).all()):
        right, best = taken == outputs.labels, final == outputs.labels
        accuracy = share_interval(int(right.sum()), samples, level)
        backbone = float(best.double().mean())
        drop = mean_interval(best.double() - right.double(), level)
    shares = exits.bincount(minlength=len(costs)).double() / samples
    promised = certificate is not None and certificate.certified
    return OperatingPoint(
        name=question.name,
        policy=policy,
        target=question.target,
        limit=question.limit,
        level=level,
        promised=promised,
        bound=certificate.bound if certificate is not None and promised else None,
        samples=samples,
        samples_needed=None if certificate is None else certificate.samples_needed,
        solver=question.solver,
        cost_kind=question.cost_kind,
        exit_shares=tuple(shares.tolist()),
        cost=mean_interval(relative[exits], level),
        disagreement=share_interval(int((taken != final).sum()), samples, level),
        accuracy=accuracy,
        backbone_accuracy=backbone,
        drop=drop,
        fingerprint=fingerprint,
        savings=saved,
        images=images,
    )


def not_certified(certificate: RiskCertificate, target: Target) -> str:
    """Return the warning that nothing is certified, with the number of images it takes."""
    needed = certificate.samples_needed
    enough = (
        f"about {needed} images would certify a first one"
        if needed is not None
        else f"nor would {MAX_SAMPLES:,} images certify one: accept more, or fit exits that agree "
        "with the backbone where they are surest"
    )
    return (
        f"No early exit is certified for {target}={certificate.target:g} with "
        f"{certificate.samples} images, so early exits are disabled; {enough}."
    )
