"""Queries of shapes, moved to where the tensor is computed."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from leenet_fx.graph.probe import check_decision
from leenet_fx.graph.proxies import IN_PLACE

_ARITHMETIC: frozenset[Any] = frozenset(
    (operator.add, operator.sub, operator.mul, operator.floordiv, operator.getitem, math.prod)
).union(IN_PLACE)


_DECISIONS: frozenset[Any] = frozenset(
    (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.mod)
).union((operator.truediv, operator.neg, operator.and_, operator.or_, int, check_decision))


def hoist_shape_queries(graph: fx.Graph, *, decisions: bool = False) -> None:
    """Move queries of a shape to the node that returns the tensor, which shortens its lifetime.

    Args:
        graph: edited in place.
        decisions: whether comparisons of shapes, and the checks of their results, are moved too.
    """
    functions = _ARITHMETIC | _DECISIONS if decisions else _ARITHMETIC
    hoisted: set[fx.Node] = set()
    for node in list(graph.nodes):
        derived = node.op == "call_function" and node.target in functions
        sources = node.all_input_nodes
        if not sources or not (_is_query(node) or (derived and hoisted.issuperset(sources))):
            continue
        latest = max(sources)
        while latest.next in hoisted and latest.next is not node:
            latest = latest.next
        latest.append(node)
        node.meta["hoisted"] = True
        hoisted.add(node)


def _is_query(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return node.target is torch.ops.aten.sym_size.int
