"""From a model to a graph of blocks with costs, which placement and surgery start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from leenet_fx.errors import InputError
from leenet_fx.graph.boundaries import Boundaries, Boundary, find_boundaries
from leenet_fx.graph.capture import capture
from leenet_fx.graph.classifier import (
    add_head,
    check_num_classes,
    find_classifier,
    is_encoder,
    replace_classifier,
)
from leenet_fx.graph.node_costs import NodeCosts, measure
from leenet_fx.graph.tracer import Trace, check_module
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
        classifier_is_new: whether that layer was replaced for another number of classes, or added.
        head_is_added: whether it was added, as `exits.final`, to a model without class head.
    """

    trace: Trace
    costs: NodeCosts
    boundaries: tuple[Boundary, ...]
    rejected: dict[str, str]
    profile: CostProfile
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    final_classifier: str | None
    classifier_is_new: bool
    head_is_added: bool


def trace_model(
    model: nn.Module,
    *,
    example_inputs: object = None,
    leaf_modules: Iterable[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
    blocks: Iterable[str | type[nn.Module]] | None = None,
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
        concrete_args: values of the arguments of `forward` that are not images, by name.
        blocks: which modules are blocks, see `find_boundaries`; None goes by the rule.
        num_classes: number of classes, if the final classifier is to be replaced for it, or added.
        generator: draws the new classifier's weights.
        tensors: whether the result's module tree copies the weights or shares them.
        name: the model's name in tables; its class name by default.

    Raises:
        InputError: not a module, no usable input size, or an encoder without `num_classes`.
        TraceError: the model cannot become a graph, or does not return (batch, classes).
        UnknownNameError: no module matches `blocks`.
    """
    check_module(model)
    traced, image_shape, dtype, costs = capture(
        model, tensors, example_inputs, tuple(leaf_modules), concrete_args
    )
    if num_classes is not None:
        check_num_classes(num_classes)
    encoder = is_encoder(traced, costs)
    if encoder:
        traced = add_head(traced, costs, num_classes, generator)
        costs = measure(traced, image_shape, dtype)
    logits = costs.shape(traced.logits)
    assert logits is not None
    classifier = find_classifier(traced, costs)
    replaced = False
    if num_classes is not None and num_classes != logits[1]:
        replaced = True
        replace_classifier(traced, classifier, logits[1], num_classes, generator)
        try:
            costs = measure(traced, image_shape, dtype)
        except Exception as error:
            raise InputError(
                f"num_classes={num_classes}: what follows '{classifier}' in {traced.name} takes "
                f"{logits[1]} classes only; replace its classifier first."
            ) from error
    found = find_boundaries(traced, costs, blocks)
    profile = _profile(name or traced.name, traced, costs, found)
    return TracedModel(
        trace=traced,
        costs=costs,
        boundaries=tuple(found.usable),
        rejected=found.rejected,
        profile=profile,
        image_shape=image_shape,
        dtype=dtype,
        num_classes=logits[1] if num_classes is None else num_classes,
        final_classifier=classifier,
        classifier_is_new=replaced or encoder,
        head_is_added=encoder,
    )


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
    """Parameters that a node reads, by its module or by name; torch.export names all in front."""
    found: list[nn.Parameter] = []
    if node.op == "call_module":
        found += root.get_submodule(str(node.target)).parameters()
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            path, _, attribute = str(source.target).rpartition(".")
            value = getattr(root.get_submodule(path), attribute)
            found += [value] if isinstance(value, nn.Parameter) else []
    return found
