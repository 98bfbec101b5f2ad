"""The boundary pass: where a graph can be cut after its blocks, and which values are alive there.

A cut moves behind the unpacking of a tuple that a block returns, and behind in-place operators that
overwrite a live value. A boundary is rejected if samples cannot be selected from its live values,
if one of them is overwritten later, or if a later operator mixes samples.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.blocks import BlockEnd
from leenet_fx.graph.channels import channel_axis
from leenet_fx.graph.liveness import Liveness
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.proxies import IN_PLACE
from leenet_fx.graph.token_grid import token_grid
from leenet_fx.graph.tracer import Trace


@dataclass(frozen=True)
class Feature:
    """A tensor that an exit may read.

    Attributes:
        node: the node that returns it.
        shape: its shape for one image, batch axis included.
        channel_axis: axis of the channels.
        grid: of tokens, height and width of the map that they come from, if there is one.
    """

    node: fx.Node
    shape: tuple[int, ...]
    channel_axis: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Boundary:
    """A position where the graph can be cut.

    Attributes:
        name: the block that ends here.
        position: index, in execution order, of the last node before the cut.
        live: nodes whose values are read after the cut, in execution order.
        batch_dims: batch dimension of each live value.
        features: the live floating-point tensors that an exit may read.
    """

    name: str
    position: int
    live: tuple[fx.Node, ...]
    batch_dims: tuple[BatchDim, ...]
    features: tuple[Feature, ...]


@dataclass(frozen=True)
class Boundaries:
    """The boundaries of a network.

    Attributes:
        usable: the boundaries that can be cut, in execution order.
        rejected: the reason why a boundary cannot be cut, by name.
    """

    usable: tuple[Boundary, ...]
    rejected: dict[str, str]


def find_boundaries(
    trace: Trace, costs: NodeCosts, liveness: Liveness, blocks: Iterable[BlockEnd]
) -> Boundaries:
    """Return the boundaries after the blocks of a network, in execution order.

    In-place arithmetic of the graph that overwrites live values is replaced where that is safe.

    Args:
        trace: the network.
        costs: shapes of its values, and the positions where they are overwritten.
        liveness: its live values at each position.
        blocks: ends of its blocks.
    """
    usable: list[Boundary] = []
    rejected: dict[str, str] = {}
    positions: set[int] = set()
    by_node = liveness.batch_dims.by_node
    for name, end in blocks:
        position = _behind_unpacking(end, liveness)
        position = _behind_in_place_operators(position, costs, liveness)
        if position in positions:
            continue
        positions.add(position)
        live = liveness.live(position)
        _replace_in_place_arithmetic(live, position, costs, liveness)
        batch_dims = tuple(by_node[node] for node in live)
        features = _features(live, batch_dims, trace, costs)
        boundary = Boundary(name, position, live, batch_dims, features)
        reason = _reason_for_rejection(boundary, costs, liveness.batch_dims.mixing)
        if reason:
            rejected[name] = reason
        else:
            usable.append(boundary)
    return Boundaries(tuple(usable), rejected)


def _features(
    live: Sequence[fx.Node], batch_dims: Sequence[BatchDim], trace: Trace, costs: NodeCosts
) -> tuple[Feature, ...]:
    return tuple(
        Feature(node, shape, axis, token_grid(node, shape, axis, costs))
        for node, batch_dim in zip(live, batch_dims, strict=True)
        if batch_dim == BatchDim("samples")
        and node in costs.floating
        and (shape := costs.shape(node)) is not None
        and len(shape) > 1
        for axis in (channel_axis(node, shape, trace.root, costs),)
    )


def _reason_for_rejection(boundary: Boundary, costs: NodeCosts, mixing: Sequence[fx.Node]) -> str:
    """Return why a boundary cannot be cut, "" if it can."""
    for node, batch_dim in zip(boundary.live, boundary.batch_dims, strict=True):
        if not batch_dim.usable:
            return f"samples cannot be selected from the live value '{node.name}'"
        if any(position > boundary.position for position in costs.written.get(node, ())):
            return f"the live value '{node.name}' is overwritten in place later"
    mixer = next((node for node in mixing if costs.order[node] > boundary.position), None)
    if mixer is not None:
        return f"the later operator '{mixer.name}' mixes the samples of a batch, or may mix them"
    if boundary.features:
        return ""
    for node, batch_dim in zip(boundary.live, boundary.batch_dims, strict=True):
        if batch_dim.per_sample > 1:
            return f"an exit cannot read '{node.name}', which has several slices per sample"
    return "no floating-point tensor with a batch axis is alive here"


def _replace_in_place_arithmetic(
    live: Sequence[fx.Node], position: int, costs: NodeCosts, liveness: Liveness
) -> None:
    """Replace `x += y` after a cut by `x = x + y` if it overwrites a live value of the cut.

    Only where no value computed before it shares the memory and is read after it.
    """
    nodes, written = liveness.nodes, costs.written
    for node in live:
        writers = [writer for writer in written.get(node, ()) if writer > position]
        if not writers or nodes[writers[0]].target not in IN_PLACE:
            continue
        first, memory = writers[0], written[node]
        sharing = [other for other, positions in written.items() if positions is memory]
        before = [other for other in sharing if liveness.order[other] < first]
        if any(liveness.last_use[other] > first for other in before):
            continue
        nodes[first].target = IN_PLACE[cast(Any, nodes[first].target)]
        earlier = [writer for writer in memory if writer < first]
        later = [writer for writer in memory if writer > first]
        written.update((other, earlier if other in before else later) for other in sharing)


def _behind_unpacking(position: int, liveness: Liveness) -> int:
    """Move a cut behind the unpacking of a tuple that a block returns."""
    nodes, by_node = liveness.nodes, liveness.batch_dims.by_node
    while nodes[position + 1].target is operator.getitem and by_node[
        cast(fx.Node, nodes[position + 1].args[0])
    ].kind in ("nested", "unusable"):
        position += 1
    return position


def _behind_in_place_operators(position: int, costs: NodeCosts, liveness: Liveness) -> int:
    """Move a cut behind operators that overwrite a live value."""
    nodes = liveness.nodes
    while position + 1 < len(nodes) - 1:
        overwrites = any(
            position + 1 in costs.written.get(node, ()) for node in liveness.live(position)
        )
        # An assignment to a slice may be one of several: such a boundary is rejected instead.
        assigns_slice = nodes[position + 1].target is operator.setitem
        if not overwrites or assigns_slice or nodes[position + 1].target in IN_PLACE:
            break
        position += 1
    return position
