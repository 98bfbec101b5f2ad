"""Contexts that a model enters in its forward: torch.autocast, torch.no_grad and the like.

torch.fx records operators, not the contexts in which they run. Operators without gradients are
kept by detaching what they compute; modules that enter autocast are kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from leenet_fx.errors import TraceError


class Contexts:
    """The contexts in which a trace has created its nodes.

    Attributes:
        without_grad: nodes created while gradients were disabled.
        autocasts: paths of the modules whose forward entered torch.autocast.
    """

    def __init__(self) -> None:
        self.without_grad: set[fx.Node] = set()
        self.autocasts: set[str] = set()

    def add(self, node: fx.Node) -> None:
        """Record the context of a new node."""
        if not torch.is_grad_enabled():
            self.without_grad.add(node)

    @contextmanager
    def record(self, current_module: Callable[[], str]) -> Iterator[None]:
        """Record contexts that are entered within.

        Args:
            current_module: returns the path of the module that is being traced.
        """
        enter = torch.autocast.__enter__

        def recorded(context: torch.autocast) -> Any:
            self.autocasts.add(current_module())
            return enter(context)

        setattr(torch.autocast, "__enter__", recorded)  # noqa: B010
        try:
            with torch.enable_grad():
                yield
        finally:
            setattr(torch.autocast, "__enter__", enter)  # noqa: B010

    def check(self, name: str) -> None:
        """Raise TraceError if a module that was traced into entered torch.autocast.

        Args:
            name: of the model, for the message.
        """
        if self.autocasts:
            path = min(self.autocasts)
            where = f"module '{path}'" if path else "its forward"
            raise TraceError(
                f"{name} cannot be traced: {where} enters torch.autocast around most of the "
                "network, which a graph does not keep. Remove it there, and call the result within "
                "torch.autocast instead."
            )


def detach_without_grad(graph: fx.Graph, without_grad: set[fx.Node]) -> None:
    """Detach what enters a part of a graph without gradients, and what weights compute in it.

    Args:
        graph: edited in place.
        without_grad: its nodes that run without gradients.
    """
    detached: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node not in without_grad or node.op in ("get_attr", "placeholder", "output"):
            continue
        for source in node.all_input_nodes:
            if source in without_grad or source.op in ("get_attr", "placeholder"):
                continue
            if source not in detached and not _is_query(node):
                detached[source] = _detach(graph, source, before=node)
            if source in detached:
                node.replace_input_with(source, detached[source])
        reads_weights = any(source.op == "get_attr" for source in node.all_input_nodes)
        if node.op == "call_module" or reads_weights:
            _detach_result(graph, node)


def _is_query(node: fx.Node) -> bool:
    """Return whether a node reads an attribute, an item or a size: its result needs no gradient."""
    return node.target in (getattr, "size", "dim", "numel")


def _detach_result(graph: fx.Graph, node: fx.Node) -> None:
    users = list(node.users)
    items = [user for user in users if getattr(user.target, "__name__", "") == "getitem"]
    if items and len(items) == len(users) and node.op == "call_module":
        for item in items:
            _detach_result(graph, item)
        return
    users = [user for user in users if not _is_query(user)]
    if users:
        result = _detach(graph, node, before=node.next)
        for user in users:
            user.replace_input_with(node, result)


def _detach(graph: fx.Graph, source: fx.Node, before: fx.Node) -> fx.Node:
    with graph.inserting_before(before):
        detached = graph.call_method("detach", (source,))
    detached.meta = dict(source.meta)
    return detached
