"""A model as a graph: torch.fx first, torch.export where torch.fx cannot, checked either way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from leenet_fx.errors import InputError, TraceError
from leenet_fx.graph.exporter import export
from leenet_fx.graph.input_shape import find_input
from leenet_fx.graph.node_costs import NodeCosts, has_users_hooks, measure
from leenet_fx.graph.signature import take_images_only
from leenet_fx.graph.tracer import Trace, clone, trace

logger = logging.getLogger("leenet_fx")


def capture(
    model: nn.Module,
    tensors: Literal["copy", "share"],
    example_inputs: object,
    leaf_modules: tuple[type[nn.Module], ...],
    concrete_args: Mapping[str, Any] | None,
) -> tuple[Trace, tuple[int, ...], torch.dtype, NodeCosts]:
    """The model's graph, the shape of one input, its dtype, and the costs of every node.

    A graph by torch.fx is held against the model: both must run the same operators on values of the
    same shapes. Where they do not, torch.fx has taken a branch for granted, and torch.export is
    tried.

    Args:
        model: an image classifier; it is not touched.
        tensors: whether the graph's module tree copies the weights or shares them.
        example_inputs: a batch of images, or None.
        leaf_modules: module classes to keep whole.
        concrete_args: values of the arguments of `forward` that are not images, by name.

    Raises:
        InputError: no usable input size.
        TraceError: neither can capture the model.
    """
    root = clone(model, tensors)
    reason: Exception
    try:
        traced = trace(root, leaf_modules=leaf_modules, concrete_args=concrete_args)

        def prepare(itself: nn.Module) -> None:
            take_images_only(itself, concrete_args)

        # Hooks may be observers, which must not run on placeholders.
        original = None if has_users_hooks(model) else prepare

        def measured(shape: tuple[int, ...], dtype: torch.dtype) -> NodeCosts:
            return measure(traced, shape, dtype, original=original)

        shape, dtype, costs = find_input(root, example_inputs, measured)
        _check_same(traced.name, costs)
        return traced, shape, dtype, costs
    except (TraceError, InputError) as by_fx:
        reason = by_fx
        root = clone(model, tensors)

        def exported(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Trace, NodeCosts]:
            tracer_kind = export(root, shape, dtype, concrete_args=concrete_args)
            return tracer_kind, measure(tracer_kind, shape, dtype)

        try:
            shape, dtype, (traced, costs) = find_input(root, example_inputs, exported)
        except (TraceError, InputError) as by_export:
            if isinstance(by_fx, InputError):
                raise by_fx from None
            both = dict.fromkeys((str(by_fx), str(by_export)))
            raise TraceError(" ".join(both)) from by_fx
    logger.warning(
        "%s was captured by torch.export: it takes images of %s only, and its backbone stays as it "
        "is in evaluation mode and cannot be trained. torch.fx: %s",
        traced.name,
        " x ".join(map(str, shape)),
        reason,
    )
    return traced, shape, dtype, costs


def _check_same(name: str, costs: NodeCosts) -> None:
    expected, found = costs.expected, costs.operations
    if expected is None or expected == found:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    runs = [
        f"{log[at].name} {log[at].shape}" if at < len(log) else "nothing"
        for log in (expected, found)
    ]
    raise TraceError(
        f"{name} cannot be traced: at operator {at} the model runs {runs[0]}, its graph {runs[1]}. "
        "A branch of its forward depends on what it is given."
    )
