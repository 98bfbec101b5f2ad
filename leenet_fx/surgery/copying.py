"""Copies of networks with exits: their state, and its restoration beside a graph."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import fx

from leenet_fx.surgery.graph_pickle import unpack

M = TypeVar("M", bound=fx.GraphModule)

_NOT_COPIED = ("_graph", "_cache", "_stage_wrapper")


def state_of(network: fx.GraphModule) -> dict[str, Any]:
    """Return the attributes of a network that a copy has too; the graph is copied on its own."""
    return {key: value for key, value in network.__dict__.items() if key not in _NOT_COPIED}


def restore(network: M, state: dict[str, Any], graph: fx.Graph) -> M:
    """Fill an empty network with a state and a graph, and return it.

    Args:
        network: made by `__new__`.
        state: its attributes.
        graph: generates its code.
    """
    network.__dict__.update(state)
    network.graph = graph
    # Setting the graph generates the code, which drops the latency.
    network.__dict__.update({key: state[key] for key in ("_latency",) if key in state})
    return network


def unpickle(kind: type[M], state: dict[str, Any], nodes: list[tuple[Any, ...]]) -> M:
    """Return a network from its pickled parts.

    Args:
        kind: its class.
        state: its attributes.
        nodes: its graph, packed.
    """
    return restore(kind.__new__(kind), state, unpack(nodes))
