"""The values of a graph that are alive between two of its nodes."""

from __future__ import annotations

from torch import fx

from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.sample_order import BatchDims


class Liveness:
    """The live values at each position of a graph.

    Attributes:
        nodes: the nodes in execution order.
        order: position of each node.
        last_use: position of the last node that reads each value, -1 if none does.
        batch_dims: dependence of each value on the batch.
    """

    def __init__(self, graph: fx.Graph, costs: NodeCosts, batch_dims: BatchDims) -> None:
        self.nodes = list(graph.nodes)
        self.order = costs.order
        self.batch_dims = batch_dims
        self.last_use = {
            node: max((self.order[user] for user in node.users), default=-1) for node in self.nodes
        }

    def live(self, position: int) -> tuple[fx.Node, ...]:
        """Return the values computed at or before `position` and read after it, without weights."""
        return tuple(
            node
            for node in self.nodes[: position + 1]
            if node.op != "get_attr" and self.last_use[node] > position
        )

    def live_samples(self, position: int) -> list[fx.Node]:
        """Return the live tensors that have an axis of samples."""
        by_node = self.batch_dims.by_node
        return [node for node in self.live(position) if by_node[node].kind == "samples"]
