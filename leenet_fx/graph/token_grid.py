"""The map that tokens come from."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from leenet_fx.graph.node_costs import NodeCosts

MAX_PREFIX = 8
"""Largest number of tokens in front of the patches: of the class, of distillation, registers."""


def token_grid(
    node: fx.Node, shape: tuple[int, ...], channel_axis: int, costs: NodeCosts
) -> tuple[int, int] | None:
    """Return height and width of the map whose cells are the last tokens of a tensor.

    It is the nearest earlier map of as many channels whose cells are all tokens but at most
    `MAX_PREFIX`: of a patch embedding, or of a convolution between stages.

    Args:
        node: node that returns the tensor.
        shape: its shape for one image, batch axis included.
        channel_axis: axis of its channels.
        costs: shapes of the earlier nodes.

    Returns:
        None if the tensor is no tokens (B, T, C), or there is no such map.
    """
    if len(shape) != 3 or channel_axis != 2:
        return None
    _, tokens, channels = shape
    for source in _ancestors(node):
        found = costs.shape(source)
        if found is None or len(found) != 4:
            continue
        if found[1] == channels:
            height, width = found[2:]
        # The queries of a single head of attention are (B, 1, T, C).
        elif found[3] == channels and found[1] > 1:
            height, width = found[1:3]
        else:
            continue
        if 0 <= tokens - height * width <= MAX_PREFIX:
            return height, width
    return None


def _ancestors(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that a node's value depends on, nearest first."""
    frontier, seen = [node], {node}
    while frontier:
        sources = [source for current in frontier for source in current.all_input_nodes]
        frontier = [source for source in dict.fromkeys(sources) if source not in seen]
        seen.update(frontier)
        yield from frontier
