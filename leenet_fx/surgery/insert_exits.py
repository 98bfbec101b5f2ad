"""Insertion of exit branches into a traced model's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from leenet_fx.cost.branch_cost import branch_costs
from leenet_fx.graph.boundaries import Boundary
from leenet_fx.graph.traced_model import TracedModel
from leenet_fx.methods import MethodConfig
from leenet_fx.parts.branches import Branch, FeatureShape
from leenet_fx.runtime.outputs import collect_exits
from leenet_fx.runtime.stages import Cut
from leenet_fx.surgery.exits import Exits
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.surgery.spec import ExitSpec
from placement import Placement


def feature_shapes(boundary: Boundary) -> tuple[FeatureShape, ...]:
    """Return the shapes of the features that a branch at a boundary reads."""
    return tuple(FeatureShape(f.shape, f.channel_axis, f.grid) for f in boundary.features)


def insert_exits(
    traced: TracedModel,
    placement: Placement,
    branches: Sequence[Branch],
    *,
    branch: str,
    branch_options: Mapping[str, Any],
    shares_weights: bool,
    blocks: tuple[str, ...] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    leaf_modules: tuple[str, ...] = (),
    method: MethodConfig | None = None,
) -> EarlyExitModule:
    """Insert exits into a traced model, whose graph is edited in place.

    Args:
        traced: the model; its graph and module tree become the result's.
        placement: the boundaries that get an exit.
        branches: one for each, in order.
        branch: name of the branch architecture.
        branch_options: its options.
        shares_weights: whether the backbone's tensors are those of the original model.
        blocks: patterns of the modules that are blocks.
        concrete_args: values of the arguments of the model's forward other than the images.
        leaf_modules: classes that were not traced into, as `module.Class`.
        method: the method that the exits are attached for.
    """
    graph = traced.trace.graph
    nodes = list(graph.nodes)
    chosen = [traced.boundaries[index] for index in placement.indices]
    calls: list[fx.Node] = []
    for index, boundary in enumerate(chosen):
        with graph.inserting_after(nodes[boundary.position]):
            features = tuple(feature.node for feature in boundary.features)
            keywords: dict[str, Any] = {}
            reads_logits = branches[index].reads_previous_logits
            if reads_logits or (calls and branches[index].carries_state):
                keywords["previous_exits"] = tuple(calls)
            calls.append(graph.call_module(f"exits.{index}", features, keywords))
    output = nodes[-1]
    with graph.inserting_before(output):
        training = graph.create_node("get_attr", "training")
        policy = graph.create_node("get_attr", "exits.policy", name="policy")
        collected = graph.call_function(
            collect_exits, (training, policy, traced.trace.logits, *calls)
        )
    output.args = (collected,)
    spec = ExitSpec(
        profile=traced.profile,
        rejected=traced.rejected,
        placement=placement,
        cuts=tuple(_cut(boundary) for boundary in chosen),
        branch=branch,
        branch_options=dict(branch_options),
        branch_costs=branch_costs(branches),
        image_shape=traced.image_shape,
        num_classes=traced.num_classes,
        final_classifier=traced.final_classifier,
        classifier_is_new=traced.classifier_is_new,
        shares_weights=shares_weights,
        tracer=traced.trace.tracer,
        blocks=blocks,
        concrete_args=dict(concrete_args or {}),
        leaf_modules=leaf_modules,
        casts_images=traced.casts_images,
        images_name=traced.trace.images_name,
        returns_mapping=traced.trace.returns_mapping,
        changed=_replaced(traced),
        method=method,
    )
    root = traced.trace.root
    # A classifier that was added to an encoder is 'exits.final'.
    added = root._modules.pop("exits") if traced.head_is_added else None
    final = None if added is None else added.get_submodule("final")
    return EarlyExitModule(root, graph, Exits(list(branches), final), spec)


def _replaced(traced: TracedModel) -> tuple[str, ...]:
    """Return the path of the final classifier if it replaces the original's."""
    path = traced.final_classifier
    replaced = traced.classifier_is_new and not traced.head_is_added and path is not None
    return (path,) if replaced and path is not None else ()


def _cut(boundary: Boundary) -> Cut:
    features = {feature.node for feature in boundary.features}
    return Cut(
        live=tuple(node.name for node in boundary.live),
        batch_dims=boundary.batch_dims,
        features=tuple(i for i, node in enumerate(boundary.live) if node in features),
    )
