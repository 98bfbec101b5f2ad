"""The network in pieces between its exits."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import fx

from leenet_fx.graph.batch_dim import BatchDim

_serial = count()
_EXIT = re.compile(r"exits\.\d+")
_OF_EXIT = re.compile(r"exits\.\d+\.")


@dataclass(frozen=True)
class Cut:
    """What crosses from one stage to the next.

    Attributes:
        live: names of the nodes whose values cross, in order.
        carried: how each follows the batch.
        features: which of `live` the exit reads.
    """

    live: tuple[str, ...]
    batch_dims: tuple[BatchDim, ...]
    features: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A piece of the network between two exits.

    Attributes:
        graph: its graph; placeholders and outputs are the values that cross the cuts.
        code: the Python generated from it.
        run: `run(network, *live)` → the values that cross to the next stage, or the logits.
    """

    graph: fx.Graph
    code: str
    run: Callable[..., Any]


def split(graph: fx.Graph, cuts: Sequence[Cut]) -> tuple[Stage, ...]:
    """Cuts the graph that computes every exit into one stage for each exit and a last one.

    The stages read weights from the network they are handed, so they are never stale.
    """
    body: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if is_exit(node):
            body.append([])
        elif node.op not in ("placeholder", "output", "get_attr") and not _collects(node):
            body[-1].append(node)
    named = {node.name: node for node in graph.nodes}
    image = next(node for node in graph.nodes if node.op == "placeholder")
    logits = logits_node(graph)
    entering: Sequence[fx.Node] = [image]
    stages = []
    for index, nodes in enumerate(body):
        last = index == len(cuts)
        leaving = [logits] if last else [named[name] for name in cuts[index].live]
        stages.append(_stage(nodes, entering, leaving, last))
        entering = leaving
    return tuple(stages)


def is_exit(node: fx.Node) -> bool:
    """Whether a node calls one of the exits."""
    return node.op == "call_module" and _EXIT.fullmatch(str(node.target)) is not None


def logits_node(graph: fx.Graph) -> fx.Node:
    """The node of the final classifier's logits in the graph that computes every exit."""
    collect = next(node for node in reversed(graph.nodes) if _collects(node))
    logits = collect.args[0]
    assert isinstance(logits, fx.Node)
    return logits


def _collects(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "collect_exits"


def _stage(
    nodes: Sequence[fx.Node], entering: Sequence[fx.Node], leaving: Sequence[fx.Node], last: bool
) -> Stage:
    graph = fx.Graph()
    made = {node: graph.placeholder(node.name) for node in entering}
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in made:
                made[source] = graph.create_node(
                    "get_attr", source.target, (), {}, name=source.name
                )
        made[node] = graph.node_copy(node, made.__getitem__)
    graph.output(made[leaving[0]] if last else tuple(made[node] for node in leaving))
    return Stage(graph, *make_function(graph))


def make_function(graph: fx.Graph) -> tuple[str, Callable[..., Any]]:
    """Python code for a graph, and the function `(network, *placeholders)` it defines."""
    python = graph.python_code(root_module="self")
    code = _look_up_directly(python.src, graph)
    filename = f"<leenet_fx stage {next(_serial)}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    scope = dict(python.globals)
    exec(compile(code, filename, "exec"), scope)
    return code, scope["forward"]


def _look_up_directly(code: str, graph: fx.Graph) -> str:
    """Takes modules from the dictionaries that hold them.

    `self.layer1` fails as an attribute before `nn.Module.__getattr__` looks there: 3 % of the time
    of a ResNet-20 at batch 1.
    """
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            code = code.replace(f" = {_as_attribute(target)}(", f" = {_held(target)}(")
        elif node.op == "get_attr" and _OF_EXIT.match(target):
            owner, name = target.rsplit(".", 1)
            code = code.replace(f" = {_as_attribute(target)}\n", f" = {_held(owner)}.{name}\n")
    return code


def _as_attribute(target: str) -> str:
    """As torch.fx writes it."""
    written = "self"
    for name in target.split("."):
        written = f"{written}.{name}" if name.isidentifier() else f'getattr({written}, "{name}")'
    return written


def _held(target: str) -> str:
    return "self" + "".join(f"._modules[{name!r}]" for name in target.split("."))
