"""The output pass: which of a model's outputs are the logits, before any softmax."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from leenet_fx.errors import TraceError
from leenet_fx.graph.channels import channel_axis
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.signature import LOGITS
from leenet_fx.graph.tracer import Trace

logger = logging.getLogger("leenet_fx")

_PROBABILITIES = {"_softmax": "softmax", "softmax": "softmax", "sigmoid": "sigmoid"}
_CASTS = ("_to_copy", "to", "clone")
_VIEWS = (
    *("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "clone"),
    *("_to_copy", "to", "alias", "detach", "dropout", "native_dropout", "as_strided", "expand"),
)
_WEIGHT_LAYERS = ("addmm", "mm", "bmm", "convolution", "linear", "matmul", "_int_mm")
_POSITIVE = (*_PROBABILITIES, "exp")


def select_logits(trace: Trace, costs: NodeCosts) -> Trace:
    """Return the trace with the logits as its only output.

    Of several outputs, the logits are the one named 'logits' or 'out'; else the matrix (B, classes)
    that is computed last, so that (features, logits) is the logits; the first of several that do
    not depend on each other. Of several feature maps, the one of lowest resolution is taken.

    Args:
        trace: the network; its output is any structure of nodes.
        costs: shapes of its values.

    Raises:
        TraceError: no output is a tensor, or several are matrices under other names.
    """
    output = next(node for node in reversed(trace.graph.nodes) if node.op == "output")
    returned = output.args[0]
    logits = _select(returned, trace, costs)
    output.args = (logits,)
    by_name = isinstance(returned, Mapping) and "logits" in returned
    return replace(trace, logits=logits, returns_mapping=by_name)


def _select(value: Any, trace: Trace, costs: NodeCosts) -> fx.Node:
    if isinstance(value, fx.Node):
        return value
    named = isinstance(value, Mapping)
    if isinstance(value, Mapping):
        found = next((value[name] for name in LOGITS if name in value), None)
        if found is not None:
            return _select(found, trace, costs)
    items: list[Any] = []
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, (tuple, list)):
        items = list(value)
    nodes = [item for item in items if isinstance(item, fx.Node)]
    if not nodes:
        inner = next((item for item in items if isinstance(item, (Mapping, tuple))), None)
        if inner is not None:
            return _select(inner, trace, costs)
        raise TraceError(
            f"{trace.name} returns {value!r}, expected logits of shape (batch, classes)."
        )
    rows = [node for node in nodes if len(costs.shape(node) or ()) == 2 and node in costs.floating]
    last = [
        row for row in rows if not any(_reads(other, row) for other in rows if other is not row)
    ]
    if len(last) == 1:
        return last[0]
    if len(nodes) > 1 and not rows and all(len(costs.shape(node) or ()) > 2 for node in nodes):
        return min(reversed(nodes), key=lambda node: _resolution(node, trace.root, costs))
    if named and len(nodes) > 1:
        raise TraceError(
            f"{trace.name} returns {', '.join(map(str, value))}: which are the logits? Wrap it "
            "in a module that returns only the logits, or rename them to 'logits'."
        )
    if len(items) > 1:
        logger.warning(
            "%s returns %d values; the first is used as the logits.", trace.name, len(items)
        )
    return last[0] if last else nodes[0]


def _reads(node: fx.Node, source: fx.Node) -> bool:
    """Return whether a node is computed from another."""
    pending, seen = [node], {node}
    while pending:
        for before in pending.pop().all_input_nodes:
            if before is source:
                return True
            if before not in seen:
                seen.add(before)
                pending.append(before)
    return False


def _resolution(node: fx.Node, root: nn.Module, costs: NodeCosts) -> int:
    """Return the number of positions of a feature map."""
    shape = costs.shape(node) or ()
    return math.prod(shape) // shape[channel_axis(node, shape, root, costs)]


def remove_softmax(trace: Trace, costs: NodeCosts) -> Trace:
    """Return the trace without a softmax or sigmoid at its end; the same object if it has none.

    Methods and policies take the softmax of logits; applied twice, all confidences are wrong.
    log_softmax stays: its softmax is the same.

    Args:
        trace: the network, with the logits as its output; its graph is edited in place.
        costs: the operators that each of its nodes ran. They are those of the graph before.

    Raises:
        TraceError: the softmax is one of several operators of a module that is not traced into, or
            its result is read elsewhere too.
    """
    operators = _operators(costs)
    node, below = trace.logits, None
    while node.op != "placeholder" and operators.get(node) is not None:
        names = operators[node]
        kept = [name for name in names if name not in _CASTS]
        kinds = {_PROBABILITIES[name] for name in kept[-1:] if name in _PROBABILITIES}
        sources = [n for n in node.all_input_nodes if costs.shape(n) is not None]
        if kinds:
            return _without(trace, node, below, kinds.pop(), len(kept) == 1, sources, costs)
        if len(sources) != 1 or not all(name in _VIEWS for name in names):
            break
        node, below = sources[0], node
    return trace


def _without(
    trace: Trace,
    node: fx.Node,
    below: fx.Node | None,
    kind: str,
    is_single: bool,
    sources: Sequence[fx.Node],
    costs: NodeCosts,
) -> Trace:
    """Return the trace without the softmax that a node computes."""
    shape = costs.shape(node) or ()
    if kind == "softmax" and _axis(node, trace.root, len(shape)) == 0:
        return trace
    if not is_single or len(sources) != 1 or len(node.users) != 1:
        raise TraceError(
            f"{trace.name} ends in {kind}, in '{node.target}': early exits compute the {kind} of "
            "logits, and would apply it twice. Return the logits from forward."
        )
    logger.warning(
        "%s ends in %s, which was removed: the result returns the logits before it; "
        "its probabilities are ee(x).%s.",
        trace.name,
        kind,
        "softmax(1)" if kind == "softmax" else "sigmoid()",
    )
    (logits,) = sources
    node.replace_all_uses_with(logits)
    trace.graph.erase_node(node)
    return replace(trace, logits=logits) if below is None else trace


def _axis(node: fx.Node, root: nn.Module, rank: int) -> int | None:
    """Return the axis of a softmax; None if it is not known."""
    axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if node.op == "call_module":
        axis = getattr(root.get_submodule(str(node.target)), "dim", None)
    return axis % rank if isinstance(axis, int) and rank else None


def _operators(costs: NodeCosts) -> dict[fx.Node, list[str]]:
    log = costs.small_log
    return {
        node: [operation.name for operation in log[start:stop]]
        for node, (start, stop) in costs.log_ranges.items()
    }


def check_not_probabilities(
    trace: Trace, costs: NodeCosts, image_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Raise TraceError if the outputs are probabilities, however they are computed.

    Only a network with a softmax, sigmoid or exponential after its last weight layer is run, on
    random images.

    Args:
        trace: the network, with its weights.
        costs: the operators that it ran.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.
    """
    names = [operation.name for operation in costs.small_log]
    last = max((i for i, name in enumerate(names) if name in _WEIGHT_LAYERS), default=-1)
    weight = next((p for p in trace.root.parameters() if p.is_floating_point()), None)
    if weight is None or weight.is_meta or not any(name in _POSITIVE for name in names[last + 1 :]):
        return
    modes = {module: module.training for module in trace.root.modules()}
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        trace.root.eval()
        with torch.no_grad():
            rows = fx.Interpreter(trace.root, graph=trace.graph).run(
                images.to(weight.device, dtype)
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    ones = torch.ones_like(rows[:, 0])
    if rows.ndim == 2 and bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-3):
        raise TraceError(
            f"{trace.name} returns probabilities (rows that sum to 1), expected logits: early "
            "exits compute the softmax of logits, and would apply it twice. Return the logits, or "
            "the logarithm of the probabilities, from forward."
        )
