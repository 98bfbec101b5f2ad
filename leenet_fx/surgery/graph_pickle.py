"""Pickling of graphs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from leenet_fx.graph import compat


@dataclass(frozen=True)
class _Node:
    """A node of a packed graph, by position."""

    index: int


@dataclass(frozen=True)
class _Operator:
    """An operator of torch.ops by name, because operators do not pickle."""

    name: str


@dataclass(frozen=True)
class _Function:
    """A function by module and name, because some of torch's do not pickle."""

    module: str
    name: str


def pack(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Convert a graph to plain values that pickle without the modules it calls.

    Returns:
        For each node its op, name, target, args, and kwargs.
    """
    position: dict[fx.Node, Any] = {node: _Node(i) for i, node in enumerate(graph.nodes)}

    def packed(value: Any) -> Any:
        return map_arg(value, position.__getitem__)

    return [
        (
            node.op,
            node.name,
            _packed_target(node.target),
            packed(node.args),
            packed(node.kwargs),
        )
        for node in graph.nodes
    ]


def _packed_target(target: Any) -> Any:
    if compat.is_operator_overload(target):
        return _Operator(str(target))
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    if module is not None and getattr(sys.modules.get(module), name, None) is target:
        return _Function(module, name)
    return target


def _unpacked_target(target: Any) -> Any:
    if isinstance(target, _Operator):
        namespace, operator, overload = target.name.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    if isinstance(target, _Function):
        return getattr(import_module(target.module), target.name)
    return target


def unpack(nodes: list[tuple[Any, ...]]) -> fx.Graph:
    """Build the graph that `pack` converted."""
    graph = fx.Graph()
    created: list[fx.Node] = []

    def unpacked(value: Any) -> Any:
        if isinstance(value, _Node):
            return created[value.index]
        if isinstance(value, (tuple, list)):
            items = [unpacked(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: unpacked(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(unpacked(value.start), unpacked(value.stop), unpacked(value.step))
        return value

    for op, name, target, args, kwargs in nodes:
        created.append(
            graph.create_node(
                op, _unpacked_target(target), unpacked(args), unpacked(kwargs), name=name
            )
        )
    return graph
