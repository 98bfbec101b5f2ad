"""The cost pass: run a graph on meta tensors for shapes, FLOPs, bytes and in-place writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from leenet_fx.graph.batch_dim import PROBE_BATCH_SIZES, Summary, summarise
from leenet_fx.graph.operator_costs import Operation, Operations, measure_call, storage_key

__all__ = ["NodeCosts", "measure", "measure_call", "model_operations"]


@dataclass
class NodeCosts:
    """Costs and shapes of the nodes of a graph, from runs at two batch sizes.

    Attributes:
        order: position of each node in execution order.
        flops: cumulative FLOPs (2 x MACs, convolutions and matrix products) after each node, for
            one image.
        bytes: cumulative bytes of activations written after each node, for one image.
        shapes: summary of each node's value at batch size 1.
        large_shapes: summary of each node's value at the larger batch size.
        written: for each node, the positions at which its memory is overwritten in place; nodes
            that share memory share the list.
        value_bytes: bytes of each node's value at batch size 1.
        floating: nodes that return a floating-point tensor.
        small_log: operators executed at batch size 1.
        large_log: operators executed at the larger batch size.
        log_ranges: for each node, start and stop of its operators in `small_log`.
    """

    order: dict[fx.Node, int] = field(default_factory=dict)
    flops: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    shapes: dict[fx.Node, Summary] = field(default_factory=dict)
    large_shapes: dict[fx.Node, Summary] = field(default_factory=dict)
    written: dict[fx.Node, list[int]] = field(default_factory=dict)
    value_bytes: dict[fx.Node, int] = field(default_factory=dict)
    floating: set[fx.Node] = field(default_factory=set)
    small_log: list[Operation] = field(default_factory=list)
    large_log: list[Operation] = field(default_factory=list)
    log_ranges: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return the shape of a node's tensor for one image, or None if it is not a tensor."""
        kind, shape = self.shapes[node]
        return shape if kind == "tensor" else None


def measure(
    graph: fx.Graph, meta: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype
) -> NodeCosts:
    """Run a graph on meta tensors at two batch sizes.

    Args:
        graph: the network.
        meta: its module tree on the meta device, see `meta_modules.meta_copy`.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.

    Raises:
        RuntimeError, ValueError, TypeError, AssertionError: raised by the model for this shape.
    """
    costs = NodeCosts(order={node: i for i, node in enumerate(graph.nodes)})
    small, large = Operations(), Operations()
    costs.small_log, costs.large_log = small.log, large.log
    with torch.device("meta"), torch.no_grad():
        one, many = (torch.empty(n, *image_shape, dtype=dtype) for n in PROBE_BATCH_SIZES)
        with small.record():
            _CostInterpreter(meta, graph, small, costs).run(small.mark_images(one))
        with large.record():
            _ShapeInterpreter(meta, graph, costs.large_shapes).run(large.mark_images(many))
    return costs


def model_operations(
    meta: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype
) -> list[Operation]:
    """Run a model itself at the larger batch size, and return the operators that it executes.

    Args:
        meta: the model on the meta device; its only argument is the images.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.
    """
    operations = Operations()
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(PROBE_BATCH_SIZES[1], *image_shape, dtype=dtype)
        with operations.record():
            meta.forward(operations.mark_images(images))
    return operations.log


class _ShapeInterpreter(fx.Interpreter):
    """Runs a graph and records a summary of each value."""

    def __init__(self, meta: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, Summary]) -> None:
        super().__init__(meta, graph=graph)
        self._shapes = shapes

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._shapes[n] = summarise(value)
        return value


class _CostInterpreter(_ShapeInterpreter):
    """Runs a graph and records all costs of each node."""

    def __init__(
        self, meta: nn.Module, graph: fx.Graph, operations: Operations, costs: NodeCosts
    ) -> None:
        super().__init__(meta, graph, costs.shapes)
        self._costs = costs
        self._operations = operations
        self._writes: dict[int, list[int]] = {}
        # Storage keys are unique only among storages that exist.
        self._alive: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        costs, operations = self._costs, self._operations
        inputs = {storage_key(t) for t in _tensor_leaves(self.fetch_args_kwargs_from_env(n))}
        start = len(operations.log)
        operations.written.clear()
        value = super().run_node(n)
        position = len(costs.flops)
        for key in inputs if self._drops_in_place(n) else inputs & operations.written:
            self._writes.setdefault(key, []).append(position)
        costs.log_ranges[n] = start, len(operations.log)
        costs.flops.append(operations.flops)
        costs.bytes.append(operations.bytes)
        tensors = _tensor_leaves(value)
        self._alive += tensors
        costs.value_bytes[n] = sum(t.numel() * t.element_size() for t in tensors)
        if isinstance(value, Tensor):
            costs.written[n] = self._writes.setdefault(storage_key(value), [])
            if value.is_floating_point():
                costs.floating.add(n)
        return value

    def _drops_in_place(self, n: fx.Node) -> bool:
        """Return whether a node is in-place dropout, which writes in training mode only."""
        if n.op == "call_module":
            module = self.module.get_submodule(str(n.target))
            return isinstance(module, _DROPOUTS) and module.inplace
        return "dropout" in getattr(n.target, "__name__", "") and bool(n.kwargs.get("inplace"))


_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


def _tensor_leaves(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _tensor_leaves(item)]
