"""The backbone split into stages at its exits."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from leenet_fx.graph.batch_dim import BatchDim

_serial_number = count()
_EXIT = re.compile(r"exits\.\d+")
_TENSOR_OF_EXIT = re.compile(r"exits\.\d+\.")


@dataclass(frozen=True)
class Cut:
    """The values that one stage passes to the next.

    Attributes:
        live: names of the nodes whose values are passed, in execution order.
        batch_dims: how each of them depends on the batch.
        features: positions in `live` of the tensors that the exit reads.
    """

    live: tuple[str, ...]
    batch_dims: tuple[BatchDim, ...]
    features: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A part of the backbone between two cuts.

    Attributes:
        graph: its graph; placeholders and outputs are the values at the cuts.
        code: the Python code generated from the graph.
        run: `run(network, *live)` returns the values at the next cut, or the final logits.
    """

    graph: fx.Graph
    code: str
    run: Callable[..., Any]


def split(graph: fx.Graph, cuts: Sequence[Cut]) -> tuple[Stage, ...]:
    """Split the graph that computes every exit into N+1 stages of the backbone.

    Stages read the weights of the network that they are called with.

    Args:
        graph: with a call of `exits.i` at each of N exits and `collect_exits` at the end.
        cuts: N, one per exit.
    """
    groups: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if is_exit(node):
            groups.append([])
        elif not _collects_exits(node):
            groups[-1].append(node)
    by_name = {node.name: node for node in graph.nodes}
    live = [[by_name[name] for name in cut.live] for cut in cuts]
    return _make_stages(groups, live, logits_node(graph))


def split_backbone(
    graph: fx.Graph,
    positions: Sequence[int],
    live: Sequence[Sequence[fx.Node]],
    logits: fx.Node,
) -> tuple[Stage, ...]:
    """Split the graph of a network without exits into stages.

    Args:
        graph: the network.
        positions: ascending; the index, among the graph's nodes, of the last node before each cut.
        live: for each cut, the nodes whose values the next stage reads.
        logits: the node of the final logits.
    """
    nodes = list(graph.nodes)
    starts = [0, *(position + 1 for position in positions)]
    ends = [*starts[1:], len(nodes)]
    groups = [nodes[start:end] for start, end in zip(starts, ends, strict=True)]
    return _make_stages(groups, live, logits)


def is_exit(node: fx.Node) -> bool:
    """Return whether a node calls an exit."""
    return node.op == "call_module" and _EXIT.fullmatch(str(node.target)) is not None


def logits_node(graph: fx.Graph) -> fx.Node:
    """Return the node of the final logits in the graph that computes every exit."""
    logits = collecting_node(graph).args[2]
    assert isinstance(logits, fx.Node)
    return logits


def collecting_node(graph: fx.Graph) -> fx.Node:
    """Return the node that calls `collect_exits`, in the graph that computes every exit."""
    nodes: Iterable[fx.Node] = reversed(graph.nodes)
    return next(node for node in nodes if _collects_exits(node))


def make_function(graph: fx.Graph) -> tuple[str, Callable[..., Any]]:
    """Generate Python code from a graph.

    Returns:
        The code, and the function `(network, *placeholders)` that it defines.
    """
    with graph.on_generate_code(lambda previous: _direct_lookups(graph, previous)):
        python = graph.python_code(root_module="self")
    return python.src, compile_forward(python.src, python.globals)


def compile_forward(code: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function `forward` of generated code, whose lines appear in tracebacks.

    Args:
        code: defines `forward`.
        names: the global names that it uses.
    """
    filename = f"<leenet_fx stage {next(_serial_number)}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    scope = dict(names)
    exec(compile(code, filename, "exec"), scope)
    forward: Callable[..., Any] = scope["forward"]
    return forward


def _collects_exits(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "collect_exits"


def _make_stages(
    groups: Sequence[Sequence[fx.Node]], live: Sequence[Sequence[fx.Node]], logits: fx.Node
) -> tuple[Stage, ...]:
    """Build one stage per group of nodes; `live` has the nodes passed from each to the next."""
    images = next(node for node in groups[0] if node.op == "placeholder")
    inputs = [[images], *live]
    outputs: list[Any] = [*map(tuple, live), logits]
    return tuple(
        _make_stage(nodes, read, returned)
        for nodes, read, returned in zip(groups, inputs, outputs, strict=True)
    )


def _make_stage(nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Any) -> Stage:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copies:
                copies[source] = graph.create_node(
                    "get_attr", source.target, (), {}, name=source.name
                )
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(map_arg(outputs, copies.__getitem__))
    return Stage(graph, *make_function(graph))


def _direct_lookups(
    graph: fx.Graph, previous: Callable[[list[str]], list[str]] | None
) -> Callable[[list[str]], list[str]]:
    """Return a transformer of generated code that reads modules from `_modules`.

    `self.layer1` is looked up as a plain attribute before `nn.Module.__getattr__` is called, which
    takes 3 % of the time of a ResNet-20 at batch size 1.
    """
    lookups: dict[str, tuple[str, str]] = {}
    for node in graph.nodes:
        target, start = str(node.target), f"{node.name} = "
        if node.op == "call_module":
            lookups[node.name] = (f"{start}{_attribute(target)}(", f"{start}{_item(target)}(")
        elif node.op == "get_attr" and _TENSOR_OF_EXIT.match(target):
            owner, _, name = target.rpartition(".")
            lookups[node.name] = (f"{start}{_attribute(target)}", f"{start}{_item(owner)}.{name}")

    def transform(statements: list[str]) -> list[str]:
        statements = statements if previous is None else previous(statements)
        return [replaced(statement) for statement in statements]

    def replaced(statement: str) -> str:
        generated, direct = lookups.get(statement.partition(" = ")[0], (None, ""))
        if generated is None or not statement.startswith(generated):
            return statement
        return direct + statement[len(generated) :]

    return transform


def _attribute(target: str) -> str:
    """Return the expression that torch.fx generates for a target."""
    expression = "self"
    for name in target.split("."):
        expression = (
            f"{expression}.{name}" if name.isidentifier() else f'getattr({expression}, "{name}")'
        )
    return expression


def _item(target: str) -> str:
    """Return an expression that reads a module from the dictionaries of its parents."""
    return "self" + "".join(f"._modules[{name!r}]" for name in target.split("."))
