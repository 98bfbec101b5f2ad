"""Measured times of the backbone, by which placements may be made."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from leenet_fx.cost.measure import stage_seconds
from leenet_fx.errors import InputError
from leenet_fx.graph.traced_model import TracedModel
from leenet_fx.runtime.stages import split_backbone


def with_seconds(traced: TracedModel, example_inputs: object) -> TracedModel:
    """Return a traced model whose profile has seconds, measured between all usable boundaries.

    Args:
        traced: the model, with weights; it is measured in evaluation mode and on its device.
        example_inputs: a batch of images to measure with; anything else is replaced by one image.

    Raises:
        InputError: the weights are on the meta device.
    """
    root, profile = traced.trace.root, traced.profile
    weight = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.device.type == "meta":
        raise InputError("cost='seconds' needs weights, and these are on the meta device.")
    images = example_inputs
    if not isinstance(images, Tensor):
        images = torch.zeros(1, *traced.image_shape)
    stages = split_backbone(
        traced.trace.graph,
        [boundary.position for boundary in traced.boundaries],
        [boundary.live for boundary in traced.boundaries],
        traced.trace.logits,
    )
    training = {module: module.training for module in root.modules()}
    root.eval()
    runs = [stage.run for stage in stages]
    seconds = stage_seconds(root, runs, images.to(weight.device, traced.dtype))
    for module, mode in training.items():
        module.training = mode
    *up_to, total = accumulate(seconds)
    candidates = tuple(
        replace(candidate, seconds=at)
        for candidate, at in zip(profile.candidates, up_to, strict=True)
    )
    return replace(traced, profile=replace(profile, candidates=candidates, seconds=total))
