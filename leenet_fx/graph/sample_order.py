"""The batch-dimension pass: how each value holds the samples, and which nodes mix samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from leenet_fx.graph.batch_dim import BatchDim, Summary, classify
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.operator_costs import Operation


@dataclass(frozen=True)
class BatchDims:
    """The dependence of all values of a graph on the batch.

    Attributes:
        by_node: batch dimension of each node's value.
        mixing: nodes whose result depends, or may depend, on several samples at once, or whose
            slices may not be in the order of the samples.
    """

    by_node: Mapping[fx.Node, BatchDim]
    mixing: tuple[fx.Node, ...]


def find_batch_dims(graph: fx.Graph, costs: NodeCosts) -> BatchDims:
    """Classify each value of a graph by its shapes at two batch sizes.

    A value whose slices may not be in the order of the samples becomes "unusable".

    Args:
        graph: the network.
        costs: shapes of its values at both batch sizes, and the operators that it ran.
    """
    batch_dims = {
        node: classify(summary, costs.large_shapes[node]) for node, summary in costs.shapes.items()
    }
    reordering, out_of_order = _find_reordering(graph, batch_dims, costs.shapes)
    batch_dims.update(dict.fromkeys(out_of_order, BatchDim("unusable")))
    positions = mixing_positions(costs.small_log, costs.large_log)
    mixing = [
        node
        for node, (start, stop) in costs.log_ranges.items()
        if any(start <= position < stop for position in positions)
    ]
    return BatchDims(batch_dims, (*reordering, *mixing))


def mixing_positions(small: Sequence[Operation], large: Sequence[Operation]) -> list[int]:
    """Return the positions of operators that mix samples, from runs at two batch sizes.

    Such an operator reads values computed from the images, and its result has a shape that does
    not depend on the batch size (a mean over samples, the features of the first sample), or it
    normalises by statistics of the batch.
    """
    if [operation.name for operation in small] != [operation.name for operation in large]:
        return []
    return [
        position
        for position, (a, b) in enumerate(zip(small, large, strict=True))
        if (a.shape == b.shape and a.shape is not None and 0 not in a.shape) or b.batch_statistics
    ]


_RESHAPES = (
    *("reshape", "reshape_as", "view", "view_as", "unsafe_view", "flatten", "unflatten"),
    *("contiguous", "clone"),
)
_REPEATS = ("expand", "repeat", "zeros", "ones", "new_zeros", "new_ones", "full", "new_full")
_ELEMENTWISE = (
    *("add", "sub", "mul", "div", "truediv", "neg", "pow", "sqrt", "rsqrt", "exp", "log", "abs"),
    *("iadd", "isub", "imul", "itruediv", "clamp", "where", "masked_fill", "to", "float", "half"),
    *("type_as", "detach", "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softplus", "elu"),
    *("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "mish", "dropout", "drop_path"),
    *("round", "maximum", "minimum", "reciprocal"),
)
_SLICE_BY_SLICE = (
    *("softmax", "log_softmax", "layer_norm", "rms_norm", "group_norm", "batch_norm"),
    *("normalize", "linear", "matmul", "bmm", "mm", "addmm", "int_mm", "einsum"),
    *("conv1d", "conv2d", "conv3d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("adaptive_max_pool2d", "interpolate", "pad", "scaled_dot_product_attention", "chunk"),
    *("split", "split_with_sizes", "unbind", "getitem", "slice", "select", "narrow"),
    *("mean", "sum", "amax", "amin", "squeeze", "unsqueeze"),
)
_PERMUTES = ("permute", "transpose", "movedim", "swapaxes")


def _find_reordering(
    graph: fx.Graph, batch_dims: Mapping[fx.Node, BatchDim], shapes: Mapping[fx.Node, Summary]
) -> tuple[list[fx.Node], set[fx.Node]]:
    """Return the nodes that may reorder the slices of samples, and all values out of order.

    Slices of one sample stay consecutive when the batch is merged with the axes behind it, as in
    (B, n, C) → (B·n, C), and when these axes are split again; when an operator works slice by
    slice; in modules; and in the functions that timm excludes from tracing. Any other operator that
    reads or returns several slices per sample may reorder them, and the values computed from its
    result are out of order too.
    """
    from timm.layers import get_notrace_functions

    keep_order = {function.__name__ for function in get_notrace_functions()}
    reordering: list[fx.Node] = []
    out_of_order: set[fx.Node] = set()
    for node in graph.nodes:
        if batch_dims[node].kind != "unusable" and not batch_dims[node].has_samples:
            continue
        if not out_of_order.isdisjoint(node.all_input_nodes):
            out_of_order.add(node)
            continue
        folded = any(batch_dims[n].is_folded for n in (node, *node.all_input_nodes))
        name = _operator_name(node)
        if not folded and name not in _RESHAPES:
            continue
        if name not in keep_order and not _keeps_order(node, batch_dims, shapes):
            reordering.append(node)
            out_of_order.add(node)
    return reordering, out_of_order


def _operator_name(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", "")).partition(".")[0].strip("_")


def _keeps_order(
    node: fx.Node, batch_dims: Mapping[fx.Node, BatchDim], shapes: Mapping[fx.Node, Summary]
) -> bool:
    sources = [n for n in node.all_input_nodes if batch_dims[n].has_samples]
    source_dims = [batch_dims[source] for source in sources]
    result = batch_dims[node]
    while result.kind == "nested":
        result = next((item for item in result.items if item.has_samples), BatchDim("constant"))
    name = _operator_name(node)
    if not source_dims:
        return name in _REPEATS
    if name in _RESHAPES and source_dims[0].kind == "samples":
        in_front = math.prod(shapes[sources[0]][1][: source_dims[0].axis])
        return bool(in_front == math.prod(shapes[node][1][: result.axis]))
    if name == "repeat_interleave":
        return len(sources) == 1 and source_dims[0].axis == result.axis
    if any(dim.kind == "samples" and dim.per_sample != result.per_sample for dim in source_dims):
        return False
    if name.startswith("expand"):
        return source_dims[0].axis == result.axis
    if name in _PERMUTES:
        return len(sources) == 1
    return node.op == "call_module" or name in _ELEMENTWISE or name in _SLICE_BY_SLICE
