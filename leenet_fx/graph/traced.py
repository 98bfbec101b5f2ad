"""From a model to a graph of blocks with costs, which placement and surgery start from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import fx, nn

from leenet_fx.errors import InputError, TraceError
from leenet_fx.graph.cuts import Boundaries, Boundary, find_boundaries
from leenet_fx.graph.inputs import find_input
from leenet_fx.graph.profile import NodeCosts, measure
from leenet_fx.graph.tracer import Trace, check_module, clone, trace
from placement import Candidate, CostProfile


@dataclass(frozen=True)
class TracedModel:
    """A model ready for exits.

    Attributes:
        trace: module tree and graph.
        costs: costs and shapes of each node.
        boundaries: the usable boundaries, in the order of `profile.candidates`.
        refused: boundaries that cannot be cut, with the reason.
        profile: cost of the plain network up to each boundary.
        image_shape: shape of one input without the batch axis.
        dtype: dtype of the images.
        num_classes: width of the logits.
        final_classifier: module name of the layer that makes the logits, None if it is no layer.
        classifier_is_new: whether that layer was replaced for another number of classes.
    """

    trace: Trace
    costs: NodeCosts
    boundaries: tuple[Boundary, ...]
    refused: dict[str, str]
    profile: CostProfile
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    final_classifier: str | None
    classifier_is_new: bool


def trace_model(
    model: nn.Module,
    *,
    example_inputs: object = None,
    leaf_modules: Iterable[type[nn.Module]] = (),
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    tensors: Literal["copy", "share"] = "share",
    name: str | None = None,
) -> TracedModel:
    """Turns a model into a graph of blocks with costs; the model itself is not touched.

    Args:
        model: an image classifier.
        example_inputs: a batch of images; None takes the size the model names, see `find_input`.
        leaf_modules: module classes to keep whole.
        num_classes: number of classes, if the final classifier is to be replaced for it.
        generator: draws the new classifier's weights.
        tensors: whether the result's module tree copies the weights or shares them.
        name: the model's name in tables; its class name by default.

    Raises:
        InputError: not a module, or no usable input size.
        TraceError: the model cannot become a graph, or does not return (batch, classes).
    """
    check_module(model)
    traced = trace(clone(model, tensors), leaf_modules=leaf_modules)
    image_shape, dtype, costs = find_input(traced, example_inputs)
    logits, how = costs.shape(traced.logits), costs.carried[traced.logits]
    if logits is None or len(logits) != 2 or how.kind != "rows" or how.axis != 0:
        raise TraceError(
            f"{traced.name} returns {costs.shapes[traced.logits]} for one image; "
            "expected logits of shape (batch, classes)."
        )
    classifier = _classifier(traced, costs)
    new = num_classes is not None and num_classes != logits[1]
    if new:
        _replace_classifier(traced, classifier, logits[1], num_classes, generator)
        try:
            costs = measure(traced, image_shape, dtype)
        except Exception as error:
            raise InputError(
                f"num_classes={num_classes}: what follows '{classifier}' in {traced.name} takes "
                f"{logits[1]} classes only; replace its classifier first."
            ) from error
    found = find_boundaries(traced, costs)
    profile = _profile(name or traced.name, traced, costs, found)
    return TracedModel(
        trace=traced,
        costs=costs,
        boundaries=tuple(found.usable),
        refused=found.refused,
        profile=profile,
        image_shape=image_shape,
        dtype=dtype,
        num_classes=num_classes if new and num_classes else logits[1],
        final_classifier=classifier,
        classifier_is_new=new,
    )


def _classifier(traced: Trace, costs: NodeCosts) -> str | None:
    """The layer whose output, but for its shape, is the logits."""
    node = traced.logits
    values = costs.shape(node)
    while values is not None:
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                return str(node.target)
        sources = [n for n in node.all_input_nodes if costs.shape(n) is not None]
        if len(sources) != 1:
            return None
        node = sources[0]
        if node.op == "placeholder":
            return None
    return None


def _replace_classifier(
    traced: Trace,
    path: str | None,
    old_classes: int,
    num_classes: int | None,
    generator: torch.Generator | None,
) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes must be a whole number from 1, got {num_classes!r}.")
    old = traced.root.get_submodule(path) if path else None
    new: nn.Module | None = None
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
    weight = cast(nn.Parameter, old.weight)
    new = new.to(weight.dtype).to_empty(device=weight.device).train(old.training)
    with torch.no_grad():
        for parameter in new.parameters():
            bound = 1 / math.sqrt(weight[0].numel())
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            if not parameter.is_meta:
                parameter.copy_(drawn)
    traced.root.set_submodule(path, new)


def _profile(name: str, traced: Trace, costs: NodeCosts, found: Boundaries) -> CostProfile:
    params = _cumulative_params(traced)
    candidates = tuple(
        Candidate(
            name=boundary.name,
            flops=costs.flops[boundary.position],
            params=params[boundary.position],
            bytes=costs.bytes[boundary.position],
            live_bytes=sum(costs.value_bytes[node] for node in boundary.live),
        )
        for boundary in found.usable
    )
    return CostProfile(name, candidates, costs.flops[-1], params[-1], costs.bytes[-1])


def _cumulative_params(traced: Trace) -> list[int]:
    """Parameters the plain network has used after each node, each counted once."""
    seen: set[int] = set()
    total = 0
    after: list[int] = []
    for node in traced.graph.nodes:
        for parameter in _parameters(node, traced.root):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                total += parameter.numel()
        after.append(total)
    return after


def _parameters(node: fx.Node, root: nn.Module) -> list[nn.Parameter]:
    if node.op == "call_module":
        return list(root.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        path, _, attribute = str(node.target).rpartition(".")
        value = getattr(root.get_submodule(path), attribute)
        return [value] if isinstance(value, nn.Parameter) else []
    return []
