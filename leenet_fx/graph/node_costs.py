"""Runs a graph on meta tensors: shapes, FLOPs, bytes and in-place writes of every node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from leenet_fx.graph.batch_dim import (
    PROBES,
    BatchDim,
    Summary,
    classify,
    find_disorder,
    summarise,
)
from leenet_fx.graph.meta_modules import stand_in
from leenet_fx.graph.operator_costs import Operation, Operations, mixing
from leenet_fx.graph.tracer import IN_PLACE, Trace, clone


@dataclass
class NodeCosts:
    """What the plain network has spent after each node, for one image, and what each node made.

    Attributes:
        order: position of each node in the execution order.
        flops: cumulative FLOPs (2 x MACs, convolutions and matrix products) after each node.
        bytes: cumulative bytes of activations written after each node.
        shapes: shape summary of each node's value at batch size 1.
        carried: how each node's value follows the batch.
        written: for each node, the positions at which its memory is overwritten in place; nodes
            that share memory share the list.
        value_bytes: bytes of each node's tensor at batch size 1.
        floating: nodes that make a floating tensor.
        mixing: nodes whose result may not keep the samples apart.
        operations: what ran on a batch of `PROBES[1]`.
        expected: what the model itself runs, if it was asked.
    """

    order: dict[fx.Node, int] = field(default_factory=dict)
    flops: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    shapes: dict[fx.Node, Summary] = field(default_factory=dict)
    batch_dims: dict[fx.Node, BatchDim] = field(default_factory=dict)
    written: dict[fx.Node, list[int]] = field(default_factory=dict)
    value_bytes: dict[fx.Node, int] = field(default_factory=dict)
    floating: set[fx.Node] = field(default_factory=set)
    mixing: list[fx.Node] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    expected: list[Operation] | None = None

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Shape of a node's tensor for one image, None where it is no tensor."""
        kind, shape = self.shapes[node]
        return shape if kind == "tensor" else None


def measure(
    traced: Trace,
    image_shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    original: Callable[[nn.Module], None] | None = None,
) -> NodeCosts:
    """Runs the trace on meta tensors at two batch sizes; no weight is touched.

    Args:
        traced: the network.
        image_shape: shape of one input without its batch axis.
        dtype: dtype of the images.
        original: given, the model itself is run too, at the larger batch size; it is called with
            the module tree first, to prepare it.

    Raises:
        RuntimeError, ValueError, TypeError, AssertionError: whatever the model says of this shape.
    """
    meta = _on_meta(traced.root)
    costs = NodeCosts(order={node: i for i, node in enumerate(traced.graph.nodes)})
    one, other = Operations(), Operations()
    with torch.device("meta"), torch.no_grad():
        small, large = (torch.empty(batch, *image_shape, dtype=dtype) for batch in PROBES)
        recorder = _Recorder(meta, traced.graph, one, costs)
        with one:
            recorder.run(one.follow(small))
        again = _Shapes(meta, traced.graph, other)
        with other:
            again.run(other.follow(large))
        if original is not None:
            original(meta)
            itself = Operations()
            with itself:
                meta.forward(itself.follow(torch.empty_like(large)))
            costs.expected = itself.log
    for node, summary in costs.shapes.items():
        costs.batch_dims[node] = classify(summary, again.shapes[node])
    disorder = find_disorder(traced.graph, costs.batch_dims, costs.shapes)
    for node in traced.graph.nodes:
        if node.target in IN_PLACE and costs.shape(node) is None:
            # Numbers have no place to be changed in; generated code would change the name's.
            node.target = IN_PLACE[node.target]
    positions = mixing(one.log, other.log)
    costs.mixing = disorder + [
        node
        for node, (start, stop) in recorder.ran.items()
        if any(start <= position < stop for position in positions)
    ]
    costs.operations = other.log
    return costs


def _on_meta(root: nn.Module) -> nn.Module:
    meta = clone(root, "meta").eval().requires_grad_(False)
    for hooks, key in _users_hooks(meta):
        # Observers must not see meta tensors.
        del hooks[key]
    stand_in(meta)
    return meta


def measure_call(call: Callable[..., Any], *inputs: torch.Tensor) -> tuple[Any, int, int]:
    """`call(*inputs)`: its result, its FLOPs (2 x MACs), the bytes of activations it writes."""
    operations = Operations()
    with torch.no_grad(), operations:
        result = call(*inputs)
    return result, operations.flops, operations.bytes


def has_users_hooks(root: nn.Module) -> bool:
    """Whether hooks other than torch's own (pruning, weight norm) hang on a module."""
    return any(True for _ in _users_hooks(root))


def _users_hooks(root: nn.Module) -> Iterator[tuple[dict[int, Any], int]]:
    for module in root.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch."):
                    yield hooks, key


class _Shapes(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph, operations: Operations) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[fx.Node, Summary] = {}
        self.ran: dict[fx.Node, tuple[int, int]] = {}
        self._operations = operations

    def run_node(self, n: fx.Node) -> Any:
        start = len(self._operations.log)
        value = super().run_node(n)
        self.shapes[n] = summarise(value)
        self.ran[n] = start, len(self._operations.log)
        return value


class _Recorder(_Shapes):
    def __init__(
        self, root: nn.Module, graph: fx.Graph, operations: Operations, costs: NodeCosts
    ) -> None:
        super().__init__(root, graph, operations)
        self.costs = costs
        self.shapes = costs.shapes
        self._writes: dict[int, list[int]] = {}
        self._keep: list[torch.Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        inputs = [t for t in tree_leaves(self.fetch_args_kwargs_from_env(n)) if _is_tensor(t)]
        before = [t._version for t in inputs]
        value = super().run_node(n)
        position = len(self.costs.flops)
        writes_in_training = self._drops_in_place(n)
        for tensor, version in zip(inputs, before, strict=True):
            if tensor._version != version or writes_in_training:
                self._writes.setdefault(self._memory(tensor), []).append(position)
        self.costs.flops.append(self._operations.flops)
        self.costs.bytes.append(self._operations.bytes)
        tensors = [t for t in tree_leaves(value) if _is_tensor(t)]
        self.costs.value_bytes[n] = sum(t.numel() * t.element_size() for t in tensors)
        if isinstance(value, torch.Tensor):
            memory = self._memory(value)
            self.costs.written[n] = self._writes.setdefault(memory, [])
            if value.is_floating_point():
                self.costs.floating.add(n)
        return value

    def _drops_in_place(self, n: fx.Node) -> bool:
        """Dropout in place writes in training only, and this run is in evaluation mode."""
        if n.op == "call_module":
            module = self.module.get_submodule(str(n.target))
            return isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace
        return "dropout" in getattr(n.target, "__name__", "") and bool(n.kwargs.get("inplace"))

    def _memory(self, tensor: torch.Tensor) -> int:
        base = tensor._base if tensor._base is not None else tensor
        self._keep.append(base)
        return id(base)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
