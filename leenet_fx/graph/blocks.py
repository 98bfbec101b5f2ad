"""The block pass: the blocks of a network, after which exits may be inserted.

The rule. Descend from the model through containers and stages. A *block* is the first module found
that has at least two weights (parameters that are matrices or kernels) and is not a sequence of
blocks itself. A module is a sequence of blocks, and is descended into, when it runs two or more
children of one class, with equal names but for a number, each with two weights, and without a
bypass: a value alive after a child is read by that child, computed by it, or read by another child
of the sequence only. The input of a module whose name has no number must not be read again after
the module. So the blocks of a ResNet are its residual blocks, of a transformer its encoder layers,
of DenseNet its dense layers, of GoogLeNet its inception modules; attention and MLP of one layer,
or the convolutions of a residual block, are bypassed by the shortcut and form one block. A block
whose class occurs once counts only between repeated blocks, or in a module with repeated blocks,
so stems and heads do not count.

Where this finds no two blocks, it is tried again, descending into any module with most of the
weights (a model in a wrapper), and with the modules of called layers taken from their names (a
GraphModule, a forward that calls the layers of its blocks).

A network without two blocks even so (AlexNet, VGG, a plain stack) has a block for each weight layer
with the normalisation, activation and pooling after it, if it ends with one live tensor. Where
these are fewer than three, a block of a class outside torch.nn may have a single weight.

`attach(model, blocks=["layer?.*"])` overrides the rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import Tensor, fx, nn

from leenet_fx.graph.liveness import Liveness
from leenet_fx.graph.meta_modules import is_quantised_linear
from leenet_fx.graph.node_costs import NodeCosts
from leenet_fx.graph.tracer import Trace
from leenet_fx.registry import unknown_name

FEW = 3
"""Number of boundaries below which others are searched for, and a warning says why."""


class BlockEnd(NamedTuple):
    """The end of a block: its name, and the position of its last node in execution order."""

    name: str
    position: int


def find_blocks(
    trace: Trace,
    costs: NodeCosts,
    liveness: Liveness,
    blocks: Iterable[str | type[nn.Module]] | None = None,
) -> tuple[BlockEnd, ...]:
    """Return the ends of the blocks of a network, in execution order (see the module's docstring).

    Args:
        trace: the network.
        costs: shapes of its values.
        liveness: its live values at each position.
        blocks: the modules that are blocks, instead of the rule: classes, or names in which a
            wildcard matches within one part of a dotted name ("layer?.*").

    Raises:
        UnknownNameError: `blocks` has a name or class that no called module has.
    """
    tree = _call_tree(liveness.nodes, trace.root)
    if blocks is not None:
        return tuple(_chosen_ends(tree, blocks))
    finders = (
        lambda: _BlockFinder(trace.root, tree, liveness),
        lambda: _BlockFinder(trace.root, tree, liveness, into_wrappers=True),
        lambda: _BlockFinder(trace.root, by_name(), liveness, into_wrappers=True),
    )

    def by_name() -> _Call:
        return _call_tree(liveness.nodes, trace.root, _stacks_by_name(liveness, trace.root, costs))

    for make_finder in finders:
        ends = make_finder().ends()
        if len(ends) >= 2:
            return tuple(ends)
    layers = _layer_ends(trace.root, costs, liveness)
    finder = _BlockFinder(trace.root, tree, liveness, into_wrappers=True, min_weights=1)
    single = finder.ends() if len(layers) < FEW else []
    return tuple(single if len(single) > len(layers) else layers)


@dataclass
class _Call:
    """A call of a module, with the calls that it makes.

    Attributes:
        path: name of the module.
        cls: its class.
        key: the name of the call: unlike the path, it differs between two calls of one module.
        first, last: positions of the first and the last node of the call.
        inner: the calls made within, by key.
    """

    path: str
    cls: type
    key: str
    first: int
    last: int
    inner: dict[str, _Call] = field(default_factory=dict)

    @property
    def own_name(self) -> str:
        """Last part of the module's path."""
        return self.path.rpartition(".")[2]

    @property
    def stem(self) -> str:
        """Last part of the module's path without its digits."""
        return re.sub(r"\d+", "", self.own_name)

    @property
    def is_numbered(self) -> bool:
        """Whether the last part of the module's path has digits."""
        return self.stem != self.own_name

    def contains(self, position: int) -> bool:
        """Return whether a position lies within the call."""
        return self.first <= position <= self.last


Stack: TypeAlias = Mapping[str, tuple[str, type]]


def _call_tree(
    nodes: list[fx.Node], root: nn.Module, stacks: Mapping[fx.Node, Stack] | None = None
) -> _Call:
    """Return the calls of modules; by default those that were recorded for each node."""
    tree = _Call("", type(root), "", 0, len(nodes) - 1)
    for position, node in enumerate(nodes):
        if node.meta.get("hoisted") or node.op == "get_attr":
            continue
        call = tree
        stack = node.meta.get("nn_module_stack", {}) if stacks is None else stacks[node]
        for key, (path, cls) in stack.items():
            call = call.inner.setdefault(key, _Call(path, cls, key, position, position))
            call.last = position
    return tree


def _stacks_by_name(liveness: Liveness, root: nn.Module, costs: NodeCosts) -> dict[fx.Node, Stack]:
    """Return the modules of each node by the name of the layer that it calls.

    A function belongs to the module of the layer before it, if it keeps its shape.
    """
    stacks: dict[fx.Node, Stack] = {}
    for node in liveness.nodes:
        stack: Stack = node.meta.get("nn_module_stack", {})
        if node.op == "call_module":
            parts = str(node.target).split(".")
            paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
            stack = {path: (path, type(root.get_submodule(path))) for path in paths}
        elif node.all_input_nodes and costs.shapes.get(node) is not None:
            last = max(node.all_input_nodes, key=liveness.order.__getitem__)
            outer = dict(stacks[last])
            if last.op == "call_module":
                outer.popitem()
            same = costs.shape(last) is not None and costs.shape(last) == costs.shape(node)
            stack = outer if same and len(outer) > len(stack) else stack
        stacks[node] = stack
    return stacks


def _chosen_ends(tree: _Call, blocks: Iterable[str | type[nn.Module]]) -> list[BlockEnd]:
    """Return the ends of the blocks chosen by name or class."""
    calls: list[_Call] = []
    pending = [tree]
    while pending:
        inner = list(pending.pop().inner.values())
        calls += inner
        pending += inner
    ends: dict[str, int] = {}
    for chosen in [blocks] if isinstance(blocks, (str, type)) else blocks:
        matching = [call for call in calls if _matches(call, chosen)]
        if not matching:
            if isinstance(chosen, type):
                raise unknown_name("block", chosen.__name__, {c.cls.__name__ for c in calls})
            raise unknown_name("block", chosen, {call.path for call in calls})
        ends |= {call.key: call.last for call in matching}
    return sorted((BlockEnd(*end) for end in ends.items()), key=lambda end: end.position)


def _matches(call: _Call, chosen: str | type[nn.Module]) -> bool:
    if isinstance(chosen, type):
        return issubclass(call.cls, chosen)
    parts, patterns = call.path.split("."), chosen.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


class _BlockFinder:
    """The rule for blocks, applied to the calls of one network."""

    def __init__(
        self,
        root: nn.Module,
        tree: _Call,
        liveness: Liveness,
        *,
        into_wrappers: bool = False,
        min_weights: int = 2,
    ) -> None:
        self._into_wrappers = into_wrappers
        self._min_weights = min_weights
        self._num_parameters = sum(p.numel() for p in root.parameters())
        self._root = root
        self._tree = tree
        self._liveness = liveness
        self._num_weights: dict[str, int] = {}
        self._wrapper = self._path_of_wrappers()

    def ends(self) -> list[BlockEnd]:
        """Return the ends of all blocks, in execution order; none without repeated blocks."""
        blocks = sorted(self._blocks(self._tree), key=lambda call: call.last)
        classes = Counter(call.cls for call in blocks)
        blocks = [self._only_inner_block(call, classes) for call in blocks]
        classes = Counter(call.cls for call in blocks)
        repeated = [i for i, call in enumerate(blocks) if classes[call.cls] >= 2]
        if not repeated:
            # Stages of one block each, all of different classes, are children of one module.
            parents = Counter(self._top_name(call) for call in blocks if "." in call.path)
            repeated = [i for i, call in enumerate(blocks) if parents[self._top_name(call)] >= 2]
        if not repeated:
            return []
        parents_of_repeated = {self._top_name(blocks[i]) for i in repeated if "." in blocks[i].path}
        return [
            BlockEnd(call.key, call.last)
            for i, call in enumerate(blocks)
            if repeated[0] <= i <= repeated[-1] or self._top_name(call) in parents_of_repeated
        ]

    def _top_name(self, call: _Call) -> str:
        """Return the first part of a module's path within the wrappers of the network."""
        return call.path.removeprefix(self._wrapper).split(".")[0]

    def _path_of_wrappers(self) -> str:
        """Return the path of the module of a class of one's own that alone has weights, or ""."""
        call, path = self._tree, ""
        while True:
            large = [child for child in call.inner.values() if self._is_large(child)]
            if (
                len(large) != 1
                or large[0].own_name.isdigit()
                or large[0].cls.__module__[:8] == "torch.nn"
            ):
                return path
            (call,) = large
            path = f"{call.path}."

    def _blocks(self, call: _Call) -> list[_Call]:
        blocks: list[_Call] = []
        for child in self._children(call):
            sequence = self._is_sequence(child) and not self._is_bypassed_module(child, call)
            if sequence or (self._into_wrappers and self._is_wrapper(child)):
                blocks += self._blocks(child)
            elif self._is_large(child):
                blocks.append(child)
        return blocks

    def _is_large(self, call: _Call) -> bool:
        if call.path not in self._num_weights:
            module = self._root.get_submodule(call.path)
            self._num_weights[call.path] = sum(_is_weight(p) for p in module.parameters()) + sum(
                is_quantised_linear(m) for m in module.modules()
            )
        least = 2 if call.cls.__module__.startswith("torch.nn") else self._min_weights
        return self._num_weights[call.path] >= least

    def _is_wrapper(self, call: _Call) -> bool:
        """Return whether a module, other than an item, has most of the weights and calls others."""
        parameters = self._root.get_submodule(call.path).parameters()
        most = 2 * sum(p.numel() for p in parameters) > self._num_parameters
        return (
            most and not call.own_name.isdigit() and any(map(self._is_large, self._children(call)))
        )

    def _children(self, call: _Call) -> list[_Call]:
        """Return the calls made by a module, with containers replaced by their contents."""
        children: list[_Call] = []
        for inner in call.inner.values():
            children += self._children(inner) if _is_container(inner, call) else [inner]
        return children

    def _is_sequence(self, call: _Call) -> bool:
        """Return whether a module runs a sequence of blocks."""
        candidates = [child for child in self._children(call) if self._is_large(child)]
        by_class = [[c for c in candidates if c.cls is cls] for cls in {c.cls for c in candidates}]
        return any(
            len(sequence) >= 2
            and len({child.stem for child in sequence}) == 1
            and all(child.is_numbered for child in sequence)
            and not any(self._is_bypassed(child, sequence, call) for child in sequence)
            for sequence in by_class
        )

    def _is_bypassed(self, child: _Call, sequence: list[_Call], parent: _Call) -> bool:
        """Return whether a value skips a child: not read there, but later outside the sequence."""
        order = self._liveness.order
        for value in self._liveness.live_samples(child.last):
            if order[value] >= child.first:
                continue
            users = [order[user] for user in value.users]
            read_here = any(map(child.contains, users))
            read_later = any(
                child.last < position <= parent.last
                and not any(other.contains(position) for other in sequence)
                for position in users
            )
            if read_later and not read_here:
                return True
        return False

    def _is_bypassed_module(self, child: _Call, parent: _Call) -> bool:
        """Return whether a module without a number has an input that is read again after it."""
        if child.is_numbered:
            return False
        order = self._liveness.order
        return any(
            order[value] < child.first
            and any(child.last < order[user] <= parent.last for user in value.users)
            for value in self._liveness.live_samples(child.last)
        )

    def _only_inner_block(self, call: _Call, classes: Counter[type]) -> _Call:
        """Return the single block of a stage, if other stages have several of its class."""
        inner = [child for child in self._children(call) if self._is_large(child)]
        single = classes[call.cls] < 2 and len(inner) == 1 and classes[inner[0].cls] >= 2
        return inner[0] if single and not self._is_bypassed(inner[0], inner, self._tree) else call


def _is_container(call: _Call, parent: _Call) -> bool:
    """Return whether a call is of a Sequential that groups blocks.

    One of several Sequentials whose children have names without numbers is a block instead.
    """
    if call.cls is not nn.Sequential:
        return False
    similar = [c for c in parent.inner.values() if c.cls is call.cls and c.stem == call.stem]
    return len(similar) < 2 or any(child.is_numbered for child in call.inner.values())


def _is_weight(parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix or kernel, not a scale or shift along one axis."""
    return sum(size > 1 for size in parameter.shape) >= 2


_NORMS_AND_POOLS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
_ACTIVATIONS = ("relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "hardswish")


def _layer_ends(root: nn.Module, costs: NodeCosts, liveness: Liveness) -> list[BlockEnd]:
    """Return the ends of all weight layers but the last, with the layers that belong to them."""
    nodes = liveness.nodes
    modules = dict(root.named_modules())

    def is_weight_layer(node: fx.Node) -> bool:
        if node.op == "call_module":
            return any(map(_is_weight, modules[str(node.target)].parameters()))
        reads = [n for n in node.all_input_nodes if n.op == "get_attr"]
        return any(len(costs.shape(n) or ()) >= 2 for n in reads)

    def belongs_to_previous(node: fx.Node) -> bool:
        if node.op == "call_module":
            module = modules[str(node.target)]
            is_activation = type(module).__module__ == "torch.nn.modules.activation"
            return is_activation or isinstance(module, _NORMS_AND_POOLS)
        name = getattr(node.target, "__name__", str(node.target)).partition(".")[0].rstrip("_")
        is_norm_or_pool = name.startswith(("max_pool", "avg_pool", "batch_norm", "_max_pool"))
        return name.endswith(_ACTIVATIONS) or is_norm_or_pool

    layers = [i for i, node in enumerate(nodes) if is_weight_layer(node)]
    ends: dict[str, int] = {}
    for layer in layers[:-1]:
        end = layer
        while nodes[end + 1].all_input_nodes == [nodes[end]] and belongs_to_previous(
            nodes[end + 1]
        ):
            end += 1
        if len(liveness.live_samples(end)) == 1:
            stack = list(nodes[layer].meta.get("nn_module_stack", {}))
            ends.setdefault(stack[-1] if stack else nodes[layer].name, end)
    return [BlockEnd(*end) for end in ends.items()]
