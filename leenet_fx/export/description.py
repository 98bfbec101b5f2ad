"""What an exported file says about its network, as plain values for JSON."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any, cast

from timm.models import get_pretrained_cfg
from torch import nn

from leenet_fx import __version__
from leenet_fx.data.transforms import TransformConfig, transform_config
from leenet_fx.errors import InputError
from leenet_fx.export.live_values import TensorSpec
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.policies import NeverExit, ThresholdPolicy
from leenet_fx.run.files import SCHEMA
from leenet_fx.surgery.operating_point import OperatingPoint, weights_fingerprint

logger = logging.getLogger("leenet_fx")


def describe(
    plan: ExportPlan, format: str, preprocessing: TransformConfig | None = None
) -> dict[str, Any]:
    """Return the description of a network.

    Args:
        plan: the network.
        format: name of the format.
        preprocessing: how images become its input; None takes what the library of a model of timm
            or torchvision says, and nothing for other models.
    """
    ee, decision = plan.ee, plan.decision
    spec = ee.spec
    if preprocessing is None:
        preprocessing = _library_preprocessing(plan)
    return {
        "schema": SCHEMA,
        "format": format,
        "leenet_fx": __version__,
        "model": spec.profile.model,
        "weights": weights_fingerprint(ee),
        "num_exits": ee.num_exits,
        "exits": list(spec.placement.names),
        "num_classes": spec.num_classes,
        "class_names": None if spec.class_names is None else list(spec.class_names),
        "image_shape": list(spec.image_shape),
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "policy": {
            "name": decision.policy["name"],
            "options": decision.policy,
            "thresholds": list(decision.thresholds),
            "sign": decision.sign,
            "alpha": decision.alpha,
            "temperatures": decision.temperatures and list(decision.temperatures),
        },
        # An exported network evaluates every exit that a sample reaches.
        "costs": list(ee.costs_for(ee.policy, enabled=True).relative("flops")),
        "operating_points": [
            described
            for point in spec.operating_points
            if (described := _point(plan, point)) is not None
        ],
    }


def tensor_list(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Return names, axes of the samples, shapes and dtypes of tensors."""
    return [
        {
            "name": spec.name,
            "batch_axis": spec.batch_axis,
            "shape": list(spec.shape),
            "dtype": str(spec.dtype).removeprefix("torch."),
        }
        for spec in specs
    ]


def _point(plan: ExportPlan, point: OperatingPoint) -> dict[str, Any] | None:
    """Return an operating point with its thresholds; None if another policy decides."""
    policy, active = point.build_policy(), plan.ee.policy
    if isinstance(policy, NeverExit):
        thresholds = [plan.decision.sign * math.inf] * plan.num_exits
        alpha = plan.decision.alpha
    elif (
        type(policy) is type(active)
        and isinstance(policy, ThresholdPolicy)
        and policy.temperatures == active.temperatures
    ):
        thresholds = [policy.threshold_at(index) for index in range(plan.num_exits)]
        alpha = policy.alpha
    else:
        logger.warning(
            "The operating point '%s' is left out: its policy is %r, and the network is exported "
            "with %r. Export it by itself after ee.use('%s').",
            point.name,
            policy,
            active,
            point.name,
        )
        return None
    return {
        "name": point.name,
        "thresholds": thresholds,
        "alpha": alpha,
        "target": point.target,
        "limit": point.limit,
        "level": point.level,
        "promised": point.promised,
        "bound": point.bound,
        "samples": point.samples,
        "exit_shares": list(point.exit_shares),
        "cost": point.cost.estimate,
        "accuracy": None if point.accuracy is None else point.accuracy.estimate,
        "backbone_accuracy": point.backbone_accuracy,
    }


def _library_preprocessing(plan: ExportPlan) -> TransformConfig | None:
    spec = plan.ee.spec
    library, _, name = spec.profile.model.partition("/")
    if library not in ("timm", "torchvision") or not name or ".py:" in name:
        return None
    try:
        if library == "torchvision":
            return transform_config(plan.ee, spec.image_shape, name=spec.profile.model)
        config = get_pretrained_cfg(name)
        if config is None:
            return None
        model = SimpleNamespace(pretrained_cfg=config.to_dict())
        return transform_config(cast(nn.Module, model), spec.image_shape)
    except (InputError, RuntimeError):
        return None
