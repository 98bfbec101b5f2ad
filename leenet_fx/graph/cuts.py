"""Candidate boundaries: where a network's blocks end, and which tensors are alive there.

What counts as a block. Descend from the model through containers and stages; a *block* is the
first module met that holds at least two weights (parameters of two or more dimensions) and is not
itself a row of blocks. A module is a row of blocks, and is descended into, when it runs two or
more numbered children of one class, each holding two weights, with nothing bypassing them: every
value alive after a child is read by that child or made by it. So ResNet gives its residual blocks,
a transformer its encoder layers, DenseNet its dense layers, GoogLeNet its inceptions; attention and
MLP inside a layer, or convolutions inside a residual block, are bypassed by the shortcut and stay
together. Blocks of a class seen once count only beside repeated ones, so stems and heads do not.

A network without two such blocks (AlexNet, VGG, a plain stack) is cut after each weight layer with
the normalisation, activation and pooling that follow it, wherever one tensor alone is alive.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field

from torch import fx, nn

from leenet_fx.graph.batch import Carried
from leenet_fx.graph.layout import channel_axis
from leenet_fx.graph.profile import NodeCosts
from leenet_fx.graph.tracer import Trace


@dataclass(frozen=True)
class Feature:
    """A tensor that an exit may read: its node, and where its channels are.

    Attributes:
        node: the node that makes it.
        shape: its shape for one image, batch axis included.
        channel_axis: axis of the channels.
    """

    node: fx.Node
    shape: tuple[int, ...]
    channel_axis: int


@dataclass(frozen=True)
class Boundary:
    """A place where the graph can be cut.

    Attributes:
        name: the block that ends here.
        position: index, in execution order, of the last node before the cut.
        live: what must cross the cut, in execution order.
        carried: how each of `live` follows the batch.
        features: the floating tensors among `live`, which an exit reads.
    """

    name: str
    position: int
    live: tuple[fx.Node, ...]
    carried: tuple[Carried, ...]
    features: tuple[Feature, ...]


@dataclass
class Boundaries:
    """The usable boundaries of a network, and why others were refused (name → reason)."""

    usable: list[Boundary] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def find_boundaries(traced: Trace, costs: NodeCosts) -> Boundaries:
    """The boundaries of a traced network, in execution order (see the module's docstring)."""
    nodes = list(traced.graph.nodes)
    liveness = _Liveness(nodes, costs)
    ends = _block_ends(traced, nodes, liveness)
    if len(ends) < 2:
        ends = _layer_ends(traced, nodes, liveness)
    found = Boundaries()
    taken: set[int] = set()
    for name, end in ends:
        position = _past_in_place(nodes, end, liveness)
        if position in taken:
            continue
        taken.add(position)
        live = liveness.live(position)
        carried = tuple(costs.carried[node] for node in live)
        features = tuple(
            Feature(node, shape, channel_axis(node, shape, traced.root, costs))
            for node, how in zip(live, carried, strict=True)
            if how.kind == "rows"
            and how.axis == 0
            and node in costs.floating
            and (shape := costs.shape(node)) is not None
            and len(shape) > 1
        )
        reason = _refusal(live, carried, features, position, costs)
        if reason:
            found.refused[name] = reason
        else:
            found.usable.append(Boundary(name, position, live, carried, features))
    return found


def _refusal(
    live: tuple[fx.Node, ...],
    carried: tuple[Carried, ...],
    features: tuple[Feature, ...],
    position: int,
    costs: NodeCosts,
) -> str:
    for node, how in zip(live, carried, strict=True):
        if not how.usable:
            return f"'{node.name}' crosses here and does not follow the batch sample by sample"
        if any(at > position for at in costs.written.get(node, ())):
            return f"'{node.name}' crosses here and is overwritten in place later"
    return "" if features else "no floating tensor with a batch axis crosses here"


class _Liveness:
    def __init__(self, nodes: list[fx.Node], costs: NodeCosts) -> None:
        self.nodes = nodes
        self.costs = costs
        self.order = costs.order
        self.last_use = {
            node: max((self.order[user] for user in node.users), default=-1) for node in nodes
        }

    def live(self, position: int) -> tuple[fx.Node, ...]:
        """Values made at or before `position` and used after it; weights are read in place."""
        return tuple(
            node
            for node in self.nodes[: position + 1]
            if node.op != "get_attr" and self.last_use[node] > position
        )

    def live_rows(self, position: int) -> list[fx.Node]:
        return [n for n in self.live(position) if self.costs.carried[n].kind == "rows"]


@dataclass
class _Call:
    """One call of one module, with the calls made inside it."""

    path: str
    cls: type
    key: str
    first: int
    last: int
    inner: dict[str, _Call] = field(default_factory=dict)


def _call_tree(nodes: list[fx.Node], root: nn.Module) -> _Call:
    tree = _Call("", type(root), "", 0, len(nodes) - 1)
    for position, node in enumerate(nodes):
        if node.meta.get("hoisted") or node.op == "get_attr":
            continue
        at = tree
        for key, (path, cls) in node.meta.get("nn_module_stack", {}).items():
            at = at.inner.setdefault(key, _Call(path, cls, key, position, position))
            at.last = position
    return tree


def _block_ends(traced: Trace, nodes: list[fx.Node], liveness: _Liveness) -> list[tuple[str, int]]:
    weights: dict[str, int] = {}

    def holds_two_weights(call: _Call) -> bool:
        if call.path not in weights:
            module = traced.root.get_submodule(call.path)
            weights[call.path] = sum(p.ndim >= 2 for p in module.parameters())
        return weights[call.path] >= 2

    def children(call: _Call) -> list[_Call]:
        flat: list[_Call] = []
        for inner in call.inner.values():
            flat += children(inner) if inner.cls is nn.Sequential else [inner]
        return flat

    def is_row(call: _Call) -> bool:
        numbered = [
            child
            for child in children(call)
            if holds_two_weights(child) and any(c.isdigit() for c in child.path.split(".")[-1])
        ]
        classes = Counter(child.cls for child in numbered)
        rows = [[c for c in numbered if c.cls is cls] for cls, n in classes.items() if n >= 2]
        return any(all(not bypassed(child, call) for child in row) for row in rows)

    def bypassed(child: _Call, parent: _Call) -> bool:
        for value in liveness.live_rows(child.last):
            if liveness.order[value] >= child.first:
                continue
            users = [liveness.order[user] for user in value.users]
            read_here = any(child.first <= at <= child.last for at in users)
            read_later = any(child.last < at <= parent.last for at in users)
            if read_later and not read_here:
                return True
        return False

    def blocks(call: _Call) -> list[_Call]:
        found: list[_Call] = []
        for child in children(call):
            if is_row(child):
                found += blocks(child)
            elif holds_two_weights(child):
                found.append(child)
        return found

    found = sorted(blocks(_call_tree(nodes, traced.root)), key=lambda call: call.last)
    classes = Counter(call.cls for call in found)
    repeated = [i for i, call in enumerate(found) if classes[call.cls] >= 2]
    if not repeated:
        return []
    homes = {found[i].path.split(".")[0] for i in repeated if "." in found[i].path}
    return [
        (call.key, call.last)
        for i, call in enumerate(found)
        if repeated[0] <= i <= repeated[-1] or call.path.split(".")[0] in homes
    ]


_TRAILERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)


def _layer_ends(traced: Trace, nodes: list[fx.Node], liveness: _Liveness) -> list[tuple[str, int]]:
    modules = dict(traced.root.named_modules())

    def is_weight_layer(node: fx.Node) -> bool:
        if node.op == "call_module":
            return any(p.ndim >= 2 for p in modules[str(node.target)].parameters())
        reads = [n for n in node.all_input_nodes if n.op == "get_attr"]
        return any(len(liveness.costs.shape(n) or ()) >= 2 for n in reads)

    def trails(node: fx.Node) -> bool:
        if node.op == "call_module":
            module = modules[str(node.target)]
            activation = type(module).__module__ == "torch.nn.modules.activation"
            return activation or isinstance(module, _TRAILERS)
        name = getattr(node.target, "__name__", str(node.target)).rstrip("_")
        known = name.endswith(("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "hardswish"))
        return known or name.startswith(("max_pool", "avg_pool", "batch_norm", "_max_pool"))

    layers = [i for i, node in enumerate(nodes) if is_weight_layer(node)]
    ends: dict[str, int] = {}
    for layer in layers[:-1]:
        end = layer
        while nodes[end + 1].all_input_nodes == [nodes[end]] and trails(nodes[end + 1]):
            end += 1
        if len(liveness.live_rows(end)) == 1:
            stack = list(nodes[layer].meta.get("nn_module_stack", {}))
            ends.setdefault(stack[-1] if stack else nodes[layer].name, end)
    return list(ends.items())


def _past_in_place(nodes: list[fx.Node], position: int, liveness: _Liveness) -> int:
    """Moves a cut behind an operation that overwrites what would cross it."""
    while position + 1 < len(nodes) - 1:
        overwritten = any(
            position + 1 in liveness.costs.written.get(node, ()) for node in liveness.live(position)
        )
        # An assignment to a part may be one of several: such a cut is refused, not moved.
        assigns_part = nodes[position + 1].target is operator.setitem
        if not overwritten or assigns_part:
            break
        position += 1
    return position
