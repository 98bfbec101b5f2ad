"""From a model to a graph of blocks with costs, the input of placement and surgery."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from leenet_fx.errors import InputError
from leenet_fx.graph.blocks import FEW, find_blocks
from leenet_fx.graph.boundaries import Boundaries, Boundary, find_boundaries
from leenet_fx.graph.capture import CapturedModel, capture
from leenet_fx.graph.casts import casts_images
from leenet_fx.graph.checks import check_module
from leenet_fx.graph.classifier import Classifier, set_classifier
from leenet_fx.graph.liveness import Liveness
from leenet_fx.graph.meta_modules import meta_copy
from leenet_fx.graph.node_costs import NodeCosts, measure
from leenet_fx.graph.sample_order import BatchDims, find_batch_dims
from leenet_fx.graph.tracer import Trace
from placement import Candidate, CostProfile

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class TracedModel:
    """A model as a graph of blocks with costs, into which exits can be inserted.

    Attributes:
        trace: module tree and graph.
        costs: costs and shapes of each node.
        batch_dims: dependence of each node's value on the batch.
        boundaries: the usable boundaries, in the order of `profile.candidates`.
        rejected: the reason why a boundary cannot be cut, by name.
        profile: cost of the backbone up to each boundary.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.
        num_classes: width of the logits.
        final_classifier: name of the layer that computes the logits, None if they do not come from
            one layer.
        classifier_is_new: whether that layer was replaced for another number of classes, or added.
        casts_images: whether the network converts images of any dtype itself.
        head_is_added: whether it was added, as `exits.final`, to a model that returns features.
    """

    trace: Trace
    costs: NodeCosts
    batch_dims: BatchDims
    boundaries: tuple[Boundary, ...]
    rejected: dict[str, str]
    profile: CostProfile
    image_shape: tuple[int, ...]
    dtype: torch.dtype
    num_classes: int
    final_classifier: str | None
    classifier_is_new: bool
    head_is_added: bool
    casts_images: bool = False


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
    """Turn a model into a graph of blocks with costs; the model itself is not modified.

    A pipeline of passes: capture (graph, shapes and costs), batch dimension, classifier, blocks,
    boundaries, cost profile.

    Args:
        model: an image classifier.
        example_inputs: a batch of images; None for the size that the model defines, see
            `find_input`.
        leaf_modules: module classes to keep whole.
        concrete_args: values of the arguments of `forward` other than the images, by name.
        blocks: the modules that are blocks, see `find_blocks`; None for the rule.
        num_classes: number of classes, to replace the final classifier for it, or to add one.
        generator: random generator for the weights of a new classifier.
        tensors: whether the result's module tree copies the weights or shares them.
        name: name of the model in tables; its class name by default.

    Raises:
        InputError: not a module, no usable input shape, a classifier that cannot be replaced, or an
            encoder without `num_classes`.
        TraceError: the model cannot be captured, or does not return (batch, classes).
        UnknownNameError: no module matches `blocks`.
    """
    check_module(model)
    captured = capture(
        model,
        tensors=tensors,
        example_inputs=example_inputs,
        leaf_modules=tuple(leaf_modules),
        concrete_args=concrete_args,
    )
    batch_dims = find_batch_dims(captured.trace.graph, captured.costs)
    classifier = set_classifier(captured, batch_dims, num_classes, generator)
    trace, costs = classifier.trace, captured.costs
    if classifier.is_new:
        costs = _measure_again(captured, classifier)
        batch_dims = find_batch_dims(trace.graph, costs)
    liveness = Liveness(trace.graph, costs, batch_dims)
    ends = find_blocks(trace, costs, liveness, blocks)
    boundaries = find_boundaries(trace, costs, liveness, ends)
    if blocks is None and len(boundaries.usable) < FEW:
        _explain_few(trace.name, boundaries)
    return TracedModel(
        trace=trace,
        costs=costs,
        batch_dims=batch_dims,
        boundaries=boundaries.usable,
        rejected=boundaries.rejected,
        profile=_cost_profile(name or trace.name, trace, costs, boundaries.usable),
        image_shape=captured.image_shape,
        dtype=captured.dtype,
        num_classes=classifier.num_classes,
        final_classifier=classifier.path,
        classifier_is_new=classifier.is_new,
        head_is_added=classifier.is_added,
        casts_images=casts_images(trace.graph, captured.image_shape, captured.dtype),
    )


def _explain_few(name: str, boundaries: Boundaries) -> None:
    """Log why there are few boundaries."""
    count = len(boundaries.usable)
    reasons = [f"{at}: {why}" for at, why in list(boundaries.rejected.items())[:3]]
    logger.warning(
        "%s has %s: %s. Name its blocks with blocks=, by class or by name, such as 'layers.*'.",
        name,
        "1 block boundary" if count == 1 else f"{count} block boundaries",
        "; ".join(reasons) or "no class of modules repeats in a sequence",
    )


def _measure_again(captured: CapturedModel, classifier: Classifier) -> NodeCosts:
    """Return the costs of a model whose classifier is new.

    Raises:
        InputError: a layer after the classifier does not take the number of classes.
    """
    trace = classifier.trace
    try:
        meta = meta_copy(trace.root)
        return measure(trace.graph, meta, captured.image_shape, captured.dtype)
    except Exception as error:
        shape = captured.costs.shape(captured.trace.logits)
        raise InputError(
            f"num_classes={classifier.num_classes}: what follows '{classifier.path}' in "
            f"{trace.name} takes {shape[1] if shape else '?'} classes only; replace its "
            "classifier first."
        ) from error


def _cost_profile(
    name: str, trace: Trace, costs: NodeCosts, boundaries: tuple[Boundary, ...]
) -> CostProfile:
    params = _cumulative_params(trace)
    candidates = tuple(
        Candidate(
            name=boundary.name,
            flops=costs.flops[boundary.position],
            params=params[boundary.position],
            bytes=costs.bytes[boundary.position],
            live_bytes=sum(costs.value_bytes[node] for node in boundary.live),
        )
        for boundary in boundaries
    )
    return CostProfile(name, candidates, costs.flops[-1], params[-1], costs.bytes[-1])


def _cumulative_params(trace: Trace) -> list[int]:
    """Return the number of parameters used up to each node, each parameter counted once."""
    seen: set[int] = set()
    total = 0
    cumulative: list[int] = []
    for node in trace.graph.nodes:
        for parameter in _parameters(node, trace.root):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                total += parameter.numel()
        cumulative.append(total)
    return cumulative


def _parameters(node: fx.Node, root: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a node uses, as a module or as inputs.

    They are counted where they are used: torch.export reads all of them at the start of the graph.
    """
    parameters: list[nn.Parameter] = []
    if node.op == "call_module":
        parameters += root.get_submodule(str(node.target)).parameters()
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            path, _, attribute = str(source.target).rpartition(".")
            value = getattr(root.get_submodule(path), attribute)
            parameters += [value] if isinstance(value, nn.Parameter) else []
    return parameters
