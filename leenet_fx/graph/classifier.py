"""The classifier pass: find the final classifier, replace it, or add one to an encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from leenet_fx.errors import InputError, TraceError
from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.capture import CapturedModel
from leenet_fx.graph.channels import channel_axis
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.sample_order import BatchDims
from leenet_fx.graph.tracer import Trace

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)


@dataclass(frozen=True)
class Classifier:
    """The final classifier of a captured model.

    Attributes:
        trace: the network that ends with it.
        path: name of the layer that computes the logits, None if they do not come from one layer.
        num_classes: width of the logits.
        is_added: whether it was added, as `exits.final`, to a model that returns features.
        is_new: whether it was added, or replaced for another number of classes.
    """

    trace: Trace
    path: str | None
    num_classes: int
    is_added: bool = False
    is_new: bool = False


class PooledLinear(nn.Module):
    """Mean over all axes but batch and channels, followed by a linear layer."""

    def __init__(self, channels: int, axis: int, num_classes: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(channels, num_classes, device="meta")

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, …) to logits (B, num_classes)."""
        others = [axis for axis in range(1, features.ndim) if axis != self.axis]
        logits: Tensor = self.linear(features.mean(others) if others else features)
        return logits


def set_classifier(
    captured: CapturedModel,
    batch_dims: BatchDims,
    num_classes: int | None,
    generator: torch.Generator | None,
) -> Classifier:
    """Find the final classifier; replace it for another number of classes, or add it if missing.

    A new classifier changes the module tree, and one that is added the graph; their costs must be
    measured again.

    Args:
        captured: the model and its costs.
        batch_dims: dependence of its values on the batch.
        num_classes: number of classes; None for that of the model.
        generator: random generator for the weights of a new classifier.

    Raises:
        InputError: `num_classes` is not a whole number from 1, or missing for an encoder, or the
            logits do not come from one linear layer that could be replaced.
        TraceError: the model does not return one row per sample.
    """
    if num_classes is not None:
        _check_num_classes(num_classes)
    trace, costs = captured.trace, captured.costs
    outputs = _check_logits(trace, costs, batch_dims)
    # timm's encoders have zero classes.
    if len(outputs) > 2 or getattr(trace.root, "num_classes", None) == 0:
        if num_classes is None:
            raise InputError(
                f"{trace.name} returns features of shape {('B', *outputs[1:])}, not logits "
                "(B, classes): pass num_classes to add a classifier, and train it with fit."
            )
        added = _add(trace, costs, outputs, num_classes, generator)
        return Classifier(added, "exits.final.linear", num_classes, is_added=True, is_new=True)
    path = _find(trace, costs)
    if num_classes is None or num_classes == outputs[1]:
        return Classifier(trace, path, outputs[1])
    if path is None:
        # An embedding, such as that of a contrastive image tower.
        added = _add(trace, costs, outputs, num_classes, generator)
        return Classifier(added, "exits.final.linear", num_classes, is_added=True, is_new=True)
    _replace(trace, path, outputs[1], num_classes, generator)
    return Classifier(trace, path, num_classes, is_new=True)


def _check_num_classes(num_classes: Any) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes must be a whole number from 1, got {num_classes!r}.")


def _check_logits(trace: Trace, costs: NodeCosts, batch_dims: BatchDims) -> tuple[int, ...]:
    """Return the shape of the outputs for one image; they must have one row per sample."""
    shape = costs.shape(trace.logits)
    batch_first = batch_dims.by_node[trace.logits] == BatchDim("samples")
    if shape is None or len(shape) < 2 or not batch_first or trace.logits not in costs.floating:
        mixing = batch_dims.mixing
        cause = f" '{mixing[0].name}' may mix the samples." if mixing else ""
        raise TraceError(
            f"{trace.name} returns {costs.shapes[trace.logits]} for one image; "
            f"expected logits of shape (batch, classes), with one row per sample.{cause}"
        )
    return shape


def _add(
    trace: Trace,
    costs: NodeCosts,
    features: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator | None,
) -> Trace:
    """Add a classifier after an encoder's features, as the module `exits.final`."""
    axis = channel_axis(trace.logits, features, trace.root, costs)
    classifier = PooledLinear(features[axis], axis, num_classes)
    like = next(p for p in trace.root.parameters() if p.is_floating_point())
    classifier.linear = _initialise(classifier.linear, like, generator)
    exits = nn.ModuleDict({"final": classifier.train(trace.root.training)})
    trace.root.add_module("exits", exits)
    graph = trace.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(output):
        logits = graph.call_module("exits.final", (trace.logits,))
    output.args = (logits,)
    return replace(trace, logits=logits)


def _find(trace: Trace, costs: NodeCosts) -> str | None:
    """Return the name of the layer that computes the logits, None if there is no single one.

    Operators with one tensor as their input (reshaping, scaling) may follow the layer.
    """
    node = trace.logits
    while costs.shape(node) is not None:
        layer = _layer(node, trace.root)
        if layer is not None:
            return layer
        sources = [n for n in node.all_input_nodes if costs.shape(n) is not None]
        if len(sources) != 1:
            return None
        node = sources[0]
        if node.op == "placeholder":
            return None
    return None


def _layer(node: fx.Node, root: nn.Module) -> str | None:
    """Return the name of the linear or convolution layer whose operator a node is."""
    path = str(node.target)
    if node.op != "call_module":
        weight = node.args[1] if len(node.args) > 1 else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        path, _, attribute = str(weight.target).rpartition(".")
        if attribute != "weight":
            return None
    return path if isinstance(root.get_submodule(path), (nn.Linear, nn.Conv2d)) else None


def _replace(
    trace: Trace,
    path: str | None,
    old_classes: int,
    num_classes: int,
    generator: torch.Generator | None,
) -> None:
    """Replace the classifier by a layer of the same kind with `num_classes` outputs."""
    old = trace.root.get_submodule(path) if path else None
    new: nn.Linear | nn.Conv2d | None = None
    if isinstance(old, nn.Linear) and old.out_features == old_classes:
        has_bias = old.bias is not None
        new = nn.Linear(old.in_features, num_classes, bias=has_bias, device="meta")
    elif isinstance(old, nn.Conv2d) and old.out_channels == old_classes:
        new = nn.Conv2d(
            old.in_channels,
            num_classes,
            cast(tuple[int, int], old.kernel_size),
            stride=cast(tuple[int, int], old.stride),
            padding=cast(tuple[int, int], old.padding),
            dilation=cast(tuple[int, int], old.dilation),
            bias=old.bias is not None,
            padding_mode=old.padding_mode,
            device="meta",
        )
    if path is None or old is None or new is None:
        raise InputError(
            f"num_classes={num_classes} differs from the {old_classes} classes of {trace.name}, "
            "whose logits do not come from one linear layer: replace its classifier first."
        )
    layer = _initialise(new, cast(nn.Parameter, old.weight), generator)
    trace.root.set_submodule(path, layer.train(old.training))


def _initialise(layer: Layer, like: nn.Parameter, generator: torch.Generator | None) -> Layer:
    """Move a layer from the meta device to a weight's device and dtype, with random values."""
    moved = layer.to(like.dtype).to_empty(device=like.device)
    bound = 1 / math.sqrt(moved.weight[0].numel())
    with torch.no_grad():
        for parameter in moved.parameters():
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            if not parameter.is_meta:
                parameter.copy_(values)
    return cast(Layer, moved)
