"""The class head: found, replaced for other classes, or added to an encoder."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from leenet_fx.errors import InputError, TraceError
from leenet_fx.graph.channels import channel_axis
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.tracer import Trace

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)


class Head(nn.Module):
    """Averages features over all but batch and channels, then a linear layer."""

    def __init__(self, channels: int, axis: int, num_classes: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(channels, num_classes, device="meta")

    def forward(self, features: Tensor) -> Tensor:
        """(B, …) features → (B, num_classes) logits."""
        others = [axis for axis in range(1, features.ndim) if axis != self.axis]
        logits: Tensor = self.linear(features.mean(others) if others else features)
        return logits


def is_encoder(traced: Trace, costs: NodeCosts) -> bool:
    """Whether the model returns features, not logits: it says so (timm), or their rank does.

    Raises:
        TraceError: it returns nothing that has one row a sample.
    """
    shape, how = costs.shape(traced.logits), costs.batch_dims[traced.logits]
    rows = how.kind == "samples" and how.axis == 0 and how.per_sample == 1
    if shape is None or len(shape) < 2 or not rows or traced.logits not in costs.floating:
        mixed = f" '{costs.mixing[0].name}' may mix the samples." if costs.mixing else ""
        raise TraceError(
            f"{traced.name} returns {costs.shapes[traced.logits]} for one image; "
            f"expected logits of shape (batch, classes), a row a sample.{mixed}"
        )
    return len(shape) > 2 or getattr(traced.root, "num_classes", None) == 0


def add_head(
    traced: Trace, costs: NodeCosts, num_classes: int | None, generator: torch.Generator | None
) -> Trace:
    """Puts a class head behind an encoder's features: `exits.final`, for what is new is an exit's.

    Raises:
        InputError: no number of classes.
    """
    features = costs.shape(traced.logits)
    assert features is not None
    if num_classes is None:
        raise InputError(
            f"{traced.name} returns features of shape {('B', *features[1:])}, not logits "
            "(B, classes): pass num_classes to add a class head, and train it with fit."
        )
    axis = channel_axis(traced.logits, features, traced.root, costs)
    head = Head(features[axis], axis, num_classes)
    like = next(p for p in traced.root.parameters() if p.is_floating_point())
    head.linear = _drawn(head.linear, like, generator)
    traced.root.add_module("exits", nn.ModuleDict({"final": head.train(traced.root.training)}))
    graph = traced.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(output):
        logits = graph.call_module("exits.final", (traced.logits,))
    output.args = (logits,)
    return replace(traced, logits=logits)


def check_num_classes(num_classes: Any) -> None:
    """Raises InputError unless it is a whole number from 1."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes must be a whole number from 1, got {num_classes!r}.")


def find_classifier(traced: Trace, costs: NodeCosts) -> str | None:
    """Name of the layer whose output, but for its shape, is the logits; None if there is none."""
    node = traced.logits
    while costs.shape(node) is not None:
        if node.op == "call_module" and str(node.target) == "exits.final":
            return "exits.final.linear"
        layer = _layer(node, traced.root)
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
    """Name of the linear or convolution layer that a node calls, or whose operator it is."""
    path = str(node.target)
    if node.op != "call_module":
        weight = node.args[1] if len(node.args) > 1 else None
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        path, _, attribute = str(weight.target).rpartition(".")
        if attribute != "weight":
            return None
    return path if isinstance(root.get_submodule(path), (nn.Linear, nn.Conv2d)) else None


def replace_classifier(
    traced: Trace,
    path: str | None,
    old_classes: int,
    num_classes: int,
    generator: torch.Generator | None,
) -> None:
    """Puts a layer of the same kind with `num_classes` outputs in the place of the classifier.

    Raises:
        InputError: the logits do not come from one linear layer.
    """
    old = traced.root.get_submodule(path) if path else None
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
            f"num_classes={num_classes} differs from the {old_classes} classes of {traced.name}, "
            "whose logits do not come from one linear layer: replace its classifier first."
        )
    made = _drawn(new, cast(nn.Parameter, old.weight), generator)
    traced.root.set_submodule(path, made.train(old.training))


def _drawn(layer: Layer, like: nn.Parameter, generator: torch.Generator | None) -> Layer:
    """A layer on the meta device brought to a weight's device and dtype, its values drawn."""
    made = layer.to(like.dtype).to_empty(device=like.device)
    bound = 1 / math.sqrt(made.weight[0].numel())
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            if not parameter.is_meta:
                parameter.copy_(drawn)
    return cast(Layer, made)
