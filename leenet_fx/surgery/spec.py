"""The description of a network with exits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leenet_fx.cost.branch_cost import BranchCost
from leenet_fx.methods import MethodConfig
from leenet_fx.runtime.stages import Cut
from leenet_fx.surgery.operating_point import OperatingPoint
from placement import CostProfile, Placement


@dataclass(frozen=True)
class ExitSpec:
    """Everything about a network with exits but its graph, weights and policy.

    Attributes:
        profile: cost of the backbone up to each candidate boundary.
        rejected: boundaries that cannot be cut, with the reason.
        placement: the boundaries with an exit.
        cuts: N, the values that are passed on at each exit.
        branch: name of the branch architecture.
        branch_options: its options.
        branch_costs: N, the cost of each branch.
        image_shape: shape of one image, without the batch axis.
        num_classes: width of the logits.
        final_classifier: module name of the final classifier; None if it is no single layer.
        classifier_is_new: whether `attach` replaced or added it for the number of classes.
        shares_weights: whether the backbone's tensors are those of the original model.
        tracer: "fx", or "export": such a backbone takes images of one size and does not train.
        blocks: patterns of the modules that are blocks; None for the default rule.
        concrete_args: values of the arguments of the model's forward other than the images.
        leaf_modules: classes that were not traced into, as `module.Class`.
        images_name: name of the argument of the model's forward that takes the images.
        returns_mapping: whether the model returns the logits by name.
        casts_images: whether the network converts images of any dtype itself.
        changed: names of the original's modules whose weights are no longer the original's.
        method: the method that the exits were attached for, or trained by last; None if none was
            named.
        class_names: names of the classes, in the order of the logits; None if not known.
        operating_points: what `leenet_fx.calibrate` found.
        checksums: `leenet_fx.digest.checksum` of each weight and buffer of the backbone, by name,
            when the exits were attached: by them `save` finds what was changed since. None if they
            were not recorded.
    """

    profile: CostProfile
    rejected: dict[str, str]
    placement: Placement
    cuts: tuple[Cut, ...]
    branch: str
    branch_options: dict[str, Any]
    branch_costs: tuple[BranchCost, ...]
    image_shape: tuple[int, ...]
    num_classes: int
    final_classifier: str | None
    classifier_is_new: bool
    shares_weights: bool
    tracer: Literal["fx", "export"]
    blocks: tuple[str, ...] | None = None
    concrete_args: dict[str, Any] = field(default_factory=dict)
    leaf_modules: tuple[str, ...] = ()
    images_name: str | None = None
    returns_mapping: bool = False
    casts_images: bool = False
    changed: tuple[str, ...] = ()
    method: MethodConfig | None = None
    class_names: tuple[str, ...] | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    checksums: Mapping[str, str] | None = field(default=None, repr=False, compare=False)
