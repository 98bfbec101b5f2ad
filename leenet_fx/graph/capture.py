"""The capture pass: a model as a graph, by torch.fx or torch.export, checked against the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from leenet_fx.errors import InputError, TraceError
from leenet_fx.graph.checks import TakesIndicesError, check_no_indices, check_takes_images
from leenet_fx.graph.cloning import clone
from leenet_fx.graph.exporter import export
from leenet_fx.graph.input_shape import find_input
from leenet_fx.graph.meta_modules import has_user_hooks, meta_copy
from leenet_fx.graph.node_costs import NodeCosts, measure, model_operations
from leenet_fx.graph.operator_costs import Operation
from leenet_fx.graph.outputs import check_not_probabilities, remove_softmax, select_logits
from leenet_fx.graph.probe import Probe
from leenet_fx.graph.proxies import IN_PLACE
from leenet_fx.graph.signature import images_name, take_images_only
from leenet_fx.graph.tracer import Trace, trace

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class CapturedModel:
    """A graph that has run for its input shape.

    Attributes:
        trace: module tree and graph.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.
        costs: costs and shapes of each node.
    """

    trace: Trace
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    costs: NodeCosts


def capture(
    model: nn.Module,
    *,
    tensors: Literal["copy", "share"],
    example_inputs: object,
    leaf_modules: tuple[type[nn.Module], ...],
    concrete_args: Mapping[str, Any] | None,
) -> CapturedModel:
    """Capture a model with torch.fx, or with torch.export if torch.fx fails.

    Control flow on shapes is followed if needed, for images of one size. A graph of torch.fx is
    compared with the model: both must execute the same operators on values of the same shapes. If
    they do not, control flow of the model was fixed during tracing, and torch.export is used.

    Args:
        model: an image classifier; it is not modified.
        tensors: whether the graph's module tree copies the weights or shares them.
        example_inputs: a batch of images, or None.
        leaf_modules: module classes to keep whole.
        concrete_args: values of the arguments of `forward` other than the images, by name.

    Raises:
        InputError: no usable input shape.
        TraceError: neither can capture the model.
    """
    fx_error: TraceError | InputError
    for probed in (False, True):
        try:
            return _capture_by_fx(
                model, tensors, example_inputs, leaf_modules, concrete_args, probed
            )
        except TakesIndicesError:
            raise
        except (TraceError, InputError) as error:
            fx_error = error
    try:
        captured = _capture_by_export(model, tensors, example_inputs, concrete_args)
    except (TraceError, InputError) as export_error:
        check_takes_images(model)
        if isinstance(fx_error, InputError):
            raise fx_error from None
        messages = dict.fromkeys((str(fx_error), str(export_error)))
        raise TraceError(" ".join(messages)) from fx_error
    logger.warning(
        "%s was captured by torch.export: it takes images of %s only, and its backbone is fixed in "
        "evaluation mode and cannot be trained. Error of torch.fx: %s",
        captured.trace.name,
        " x ".join(map(str, captured.image_shape)),
        fx_error,
    )
    return captured


def _capture_by_fx(
    model: nn.Module,
    tensors: Literal["copy", "share"],
    example_inputs: object,
    leaf_modules: tuple[type[nn.Module], ...],
    concrete_args: Mapping[str, Any] | None,
    probed: bool,
) -> CapturedModel:
    root = clone(model, tensors)
    images_argument = images_name(model, concrete_args)
    options: dict[str, Any] = {"leaf_modules": leaf_modules, "concrete_args": concrete_args}
    symbolic = None if probed else trace(root, **options)
    # The user's hooks cannot run on meta tensors, and without them the model may do less.
    comparable = not has_user_hooks(model)

    def run(image_shape: tuple[int, ...], dtype: torch.dtype) -> CapturedModel:
        meta = meta_copy(root)
        probe = Probe(meta, image_shape, dtype)
        traced = trace(root, **options, probe=probe) if symbolic is None else symbolic
        if probed:
            # The trace may have added constants.
            meta = meta_copy(root)
        check_no_indices(traced.graph, meta)
        costs = measure(traced.graph, meta, image_shape, dtype)
        if comparable:
            take_images_only(meta, _on_meta(concrete_args))
            expected = model_operations(meta, image_shape, dtype)
            _check_operations(traced.name, expected, costs.large_log)
        _replace_in_place_arithmetic(traced.graph, costs)
        return _with_logits(traced, image_shape, dtype, costs, images_argument)

    return find_input(root, example_inputs, run)


def _capture_by_export(
    model: nn.Module,
    tensors: Literal["copy", "share"],
    example_inputs: object,
    concrete_args: Mapping[str, Any] | None,
) -> CapturedModel:
    root = clone(model, tensors)
    images_argument = images_name(model, concrete_args)

    def run(image_shape: tuple[int, ...], dtype: torch.dtype) -> CapturedModel:
        exported = export(root, image_shape, dtype, concrete_args=concrete_args)
        costs = measure(exported.graph, meta_copy(root), image_shape, dtype)
        return _with_logits(exported, image_shape, dtype, costs, images_argument)

    return find_input(root, example_inputs, run)


def _with_logits(
    trace: Trace,
    image_shape: tuple[int, ...],
    dtype: torch.dtype,
    costs: NodeCosts,
    images_name: str | None,
) -> CapturedModel:
    """Return a captured model whose only output is the logits."""
    trace = replace(select_logits(trace, costs), images_name=images_name)
    shorter = remove_softmax(trace, costs)
    if len(shorter.graph.nodes) != len(costs.order):
        costs = measure(shorter.graph, meta_copy(shorter.root), image_shape, dtype)
    check_not_probabilities(shorter, costs, image_shape, dtype)
    return CapturedModel(shorter, image_shape, dtype, costs)


def _on_meta(concrete_args: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in (concrete_args or {}).items()
    }


def _check_operations(name: str, expected: list[Operation], executed: list[Operation]) -> None:
    """Raise TraceError unless model and graph have executed the same operators."""
    # Parts that run without gradients are detached in the graph.
    expected, executed = ([o for o in log if o.name != "detach"] for log in (expected, executed))
    if expected == executed:
        return
    position = next(
        (i for i, (a, b) in enumerate(zip(expected, executed, strict=False)) if a != b),
        min(len(expected), len(executed)),
    )
    operators = [
        f"{log[position].name} {log[position].shape}" if position < len(log) else "nothing"
        for log in (expected, executed)
    ]
    raise TraceError(
        f"{name} cannot be traced: at operator {position} the model executes {operators[0]}, its "
        f"graph {operators[1]}. The control flow of its forward depends on the input."
    )


def _replace_in_place_arithmetic(graph: fx.Graph, costs: NodeCosts) -> None:
    """Replace augmented assignments to numbers by plain arithmetic.

    Numbers are immutable: generated code such as `a += 1` would rebind a name that other nodes
    read.
    """
    for node in graph.nodes:
        if node.target in IN_PLACE and costs.shape(node) is None:
            node.target = IN_PLACE[node.target]
