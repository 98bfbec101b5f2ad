"""Candidate boundaries: where a network's blocks end, and which tensors are alive there.

What counts as a block. Descend from the model through containers and stages; a *block* is the
first module met that holds at least two weights (parameters that are matrices or kernels) and is
not itself a row of blocks. A module is a row of blocks, and is descended into, when it runs two or
more children of one class, named alike but for a number, each holding two weights, with nothing
bypassing them: a value alive after a child is read by that child, made by it, or meant for another
child of the row; and what enters a module that is no numbered step of a row itself must not be
wanted again behind it. So ResNet gives its residual blocks, a transformer its encoder layers,
DenseNet its dense layers, GoogLeNet its inceptions; attention and MLP inside a layer, or
convolutions inside a residual block, are bypassed by the shortcut and stay together. Blocks of a
class seen once count only beside repeated ones or in a module with others, so stems and heads do
not.

A network without two such blocks (AlexNet, VGG, a plain stack) is cut after each weight layer with
the normalisation, activation and pooling that follow it, wherever one tensor alone is alive.

Whoever wants other blocks names them: `attach(model, blocks=["layer?.*"])`.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, fx, nn

from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.channels import channel_axis
from leenet_fx.graph.meta_modules import is_quantised_linear
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.tracer import IN_PLACE, Trace
from leenet_fx.registry import unknown_name


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
    batch_dims: tuple[BatchDim, ...]
    features: tuple[Feature, ...]


@dataclass
class Boundaries:
    """The usable boundaries of a network, and why others were refused (name → reason)."""

    usable: list[Boundary] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


def find_boundaries(
    traced: Trace, costs: NodeCosts, blocks: Iterable[str | type[nn.Module]] | None = None
) -> Boundaries:
    """The boundaries of a traced network, in execution order (see the module's docstring).

    Args:
        traced: the network.
        costs: what its nodes make.
        blocks: the modules that count as blocks: names with wildcards, which stand for one part of
            a name each ("layer?.*"), or classes.

    Raises:
        UnknownNameError: a name or class that no module called by the network has.
    """
    nodes = list(traced.graph.nodes)
    liveness = _Liveness(nodes, costs)
    tree = _call_tree(nodes, traced.root)
    if blocks is not None:
        ends = _chosen_ends(tree, blocks)
    else:
        ends = _block_ends(traced, tree, liveness)
        if len(ends) < 2:
            ends = _layer_ends(traced, nodes, liveness)
    found = Boundaries()
    taken: set[int] = set()
    for name, end in ends:
        position = _past_in_place(nodes, _past_unpacking(nodes, end, liveness), liveness)
        if position in taken:
            continue
        taken.add(position)
        live = liveness.live(position)
        _make_anew(nodes, live, position, liveness)
        batch_dims = tuple(costs.batch_dims[node] for node in live)
        features = tuple(
            Feature(node, shape, channel_axis(node, shape, traced.root, costs))
            for node, how in zip(live, batch_dims, strict=True)
            if how.kind == "samples"
            and how.axis == 0
            and how.per_sample == 1
            and node in costs.floating
            and (shape := costs.shape(node)) is not None
            and len(shape) > 1
        )
        reason = _refusal(live, batch_dims, features, position, costs)
        if reason:
            found.rejected[name] = reason
        else:
            found.usable.append(Boundary(name, position, live, batch_dims, features))
    return found


def _refusal(
    live: tuple[fx.Node, ...],
    batch_dims: tuple[BatchDim, ...],
    features: tuple[Feature, ...],
    position: int,
    costs: NodeCosts,
) -> str:
    for node, how in zip(live, batch_dims, strict=True):
        if not how.usable:
            return f"'{node.name}' crosses here and does not follow the batch sample by sample"
        if any(at > position for at in costs.written.get(node, ())):
            return f"'{node.name}' crosses here and is overwritten in place later"
    mixed = next((n for n in costs.mixing if costs.order[n] > position), None)
    if mixed is not None:
        return f"'{mixed.name}', behind it, mixes the samples of a batch, or may"
    if features:
        return ""
    folded = next((n for n, how in zip(live, batch_dims, strict=True) if how.per_sample > 1), None)
    if folded is not None:
        return f"'{folded.name}' crosses here with several slices a sample, which no exit can read"
    return "no floating tensor with a batch axis crosses here"


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

    def live_samples(self, position: int) -> list[fx.Node]:
        return [n for n in self.live(position) if self.costs.batch_dims[n].kind == "samples"]


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


def _chosen_ends(tree: _Call, blocks: Iterable[str | type[nn.Module]]) -> list[tuple[str, int]]:
    calls: list[_Call] = []
    pending = [tree]
    while pending:
        inner = list(pending.pop().inner.values())
        calls += inner
        pending += inner
    ends: dict[str, int] = {}
    for wanted in [blocks] if isinstance(blocks, (str, type)) else blocks:
        found = [call for call in calls if _matches(call, wanted)]
        if not found:
            known = {c.cls.__name__ for c in calls} if isinstance(wanted, type) else set()
            name = wanted.__name__ if isinstance(wanted, type) else wanted
            raise unknown_name("block", name, known or {call.path for call in calls})
        ends |= {call.key: call.last for call in found}
    return sorted(ends.items(), key=lambda item: item[1])


def _matches(call: _Call, wanted: str | type[nn.Module]) -> bool:
    if isinstance(wanted, type):
        return issubclass(call.cls, wanted)
    parts, patterns = call.path.split("."), wanted.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _stem(call: _Call) -> str:
    """A module's own name without its numbers."""
    return re.sub(r"\d+", "", call.path.rpartition(".")[2])


def _block_ends(traced: Trace, tree: _Call, liveness: _Liveness) -> list[tuple[str, int]]:
    weights: dict[str, int] = {}

    def holds_two_weights(call: _Call) -> bool:
        if call.path not in weights:
            module = traced.root.get_submodule(call.path)
            weights[call.path] = sum(_is_weight(p) for p in module.parameters()) + sum(
                is_quantised_linear(m) for m in module.modules()
            )
        return weights[call.path] >= 2

    def children(call: _Call) -> list[_Call]:
        flat: list[_Call] = []
        for inner in call.inner.values():
            flat += children(inner) if is_container(inner, call) else [inner]
        return flat

    def is_container(call: _Call, parent: _Call) -> bool:
        """A Sequential, but not one of several whose parts have names: those are blocks."""
        if call.cls is not nn.Sequential:
            return False
        alike = [c for c in parent.inner.values() if c.cls is call.cls and _stem(c) == _stem(call)]
        named = all(_stem(part) == part.path.rpartition(".")[2] for part in call.inner.values())
        return len(alike) < 2 or not named

    def is_row(call: _Call) -> bool:
        heavy = [child for child in children(call) if holds_two_weights(child)]
        rows = [[c for c in heavy if c.cls is cls] for cls in {c.cls for c in heavy}]
        return any(
            len(row) >= 2
            and len({_stem(child) for child in row}) == 1
            and all(_stem(child) != child.path.rpartition(".")[2] for child in row)
            and not any(bypassed(child, row, call) for child in row)
            for row in rows
        )

    def bypassed(child: _Call, row: list[_Call], parent: _Call) -> bool:
        for value in liveness.live_samples(child.last):
            if liveness.order[value] >= child.first:
                continue
            users = [liveness.order[user] for user in value.users]
            read_here = any(child.first <= at <= child.last for at in users)
            read_later = any(
                child.last < at <= parent.last
                and not any(other.first <= at <= other.last for other in row)
                for at in users
            )
            if read_later and not read_here:
                return True
        return False

    def overtaken(child: _Call, parent: _Call) -> bool:
        """Whether what enters a module is wanted again behind it, and it is no numbered step."""
        if _stem(child) != child.path.rpartition(".")[2]:
            return False
        return any(
            liveness.order[value] < child.first
            and any(child.last < liveness.order[user] <= parent.last for user in value.users)
            for value in liveness.live_samples(child.last)
        )

    def blocks(call: _Call) -> list[_Call]:
        found: list[_Call] = []
        for child in children(call):
            if is_row(child) and not overtaken(child, call):
                found += blocks(child)
            elif holds_two_weights(child):
                found.append(child)
        return found

    def lone(call: _Call, parent: _Call) -> _Call:
        """The one block of a stage that has no other, where other stages have several."""
        heavy = [child for child in children(call) if holds_two_weights(child)]
        alone = classes[call.cls] < 2 and len(heavy) == 1 and classes[heavy[0].cls] >= 2
        return heavy[0] if alone and not bypassed(heavy[0], heavy, parent) else call

    found = sorted(blocks(tree), key=lambda call: call.last)
    classes = Counter(call.cls for call in found)
    found = [lone(call, tree) for call in found]
    classes = Counter(call.cls for call in found)
    repeated = [i for i, call in enumerate(found) if classes[call.cls] >= 2]
    if not repeated:
        # Stages of one block each, all of different classes, stand side by side in one module.
        together = Counter(call.path.split(".")[0] for call in found if "." in call.path)
        repeated = [i for i, c in enumerate(found) if together[c.path.split(".")[0]] >= 2]
    if not repeated:
        return []
    homes = {found[i].path.split(".")[0] for i in repeated if "." in found[i].path}
    return [
        (call.key, call.last)
        for i, call in enumerate(found)
        if repeated[0] <= i <= repeated[-1] or call.path.split(".")[0] in homes
    ]


def _is_weight(parameter: Tensor) -> bool:
    """A matrix or kernel; scales and shifts of one axis are none, however they are shaped."""
    return sum(size > 1 for size in parameter.shape) >= 2


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
            return any(map(_is_weight, modules[str(node.target)].parameters()))
        reads = [n for n in node.all_input_nodes if n.op == "get_attr"]
        return any(len(liveness.costs.shape(n) or ()) >= 2 for n in reads)

    def trails(node: fx.Node) -> bool:
        if node.op == "call_module":
            module = modules[str(node.target)]
            activation = type(module).__module__ == "torch.nn.modules.activation"
            return activation or isinstance(module, _TRAILERS)
        name = getattr(node.target, "__name__", str(node.target)).partition(".")[0].rstrip("_")
        known = name.endswith(("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "hardswish"))
        return known or name.startswith(("max_pool", "avg_pool", "batch_norm", "_max_pool"))

    layers = [i for i, node in enumerate(nodes) if is_weight_layer(node)]
    ends: dict[str, int] = {}
    for layer in layers[:-1]:
        end = layer
        while nodes[end + 1].all_input_nodes == [nodes[end]] and trails(nodes[end + 1]):
            end += 1
        if len(liveness.live_samples(end)) == 1:
            stack = list(nodes[layer].meta.get("nn_module_stack", {}))
            ends.setdefault(stack[-1] if stack else nodes[layer].name, end)
    return list(ends.items())


def _make_anew(
    nodes: list[fx.Node], live: tuple[fx.Node, ...], position: int, liveness: _Liveness
) -> None:
    """Lets `x += y` behind a cut make a new tensor where it overwrites what crosses the cut.

    Only where nothing made before it holds the same memory and is read after it.
    """
    written = liveness.costs.written
    for node in live:
        writers = [at for at in written.get(node, ()) if at > position]
        if not writers or nodes[writers[0]].target not in IN_PLACE:
            continue
        at, memory = writers[0], written[node]
        sharing = [other for other, its in written.items() if its is memory]
        before = [other for other in sharing if liveness.order[other] < at]
        if any(liveness.last_use[other] > at for other in before):
            continue
        nodes[at].target = IN_PLACE[cast(Any, nodes[at].target)]
        earlier, later = [p for p in memory if p < at], [p for p in memory if p > at]
        written.update((other, earlier if other in before else later) for other in sharing)


def _past_unpacking(nodes: list[fx.Node], position: int, liveness: _Liveness) -> int:
    """Moves a cut behind the taking apart of a tuple that a block returns."""
    while nodes[position + 1].target is operator.getitem and liveness.costs.batch_dims[
        cast(fx.Node, nodes[position + 1].args[0])
    ].kind in ("nested", "unusable"):
        position += 1
    return position


def _past_in_place(nodes: list[fx.Node], position: int, liveness: _Liveness) -> int:
    """Moves a cut behind an operation that overwrites what would cross it."""
    while position + 1 < len(nodes) - 1:
        overwritten = any(
            position + 1 in liveness.costs.written.get(node, ()) for node in liveness.live(position)
        )
        # An assignment to a part may be one of several: such a cut is refused, not moved.
        assigns_part = nodes[position + 1].target is operator.setitem
        if not overwritten or assigns_part or nodes[position + 1].target in IN_PLACE:
            break
        position += 1
    return position
