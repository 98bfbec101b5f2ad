"""The conditional runtime: stages between exits, run only for the samples still inside."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from leenet_fx.graph.batch import Carried, check_rows, take_rows
from leenet_fx.parts.branches import Branch
from leenet_fx.parts.policies import Policy

_serial = count()
_EXIT = re.compile(r"exits\.\d+")


@dataclass(frozen=True)
class Cut:
    """What crosses from one stage to the next.

    Attributes:
        live: names of the nodes whose values cross, in order.
        carried: how each follows the batch.
        features: which of `live` the exit reads.
    """

    live: tuple[str, ...]
    carried: tuple[Carried, ...]
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
    python = graph.python_code(root_module="self")
    filename = f"<leenet_fx stage {next(_serial)}>"
    linecache.cache[filename] = (len(python.src), None, python.src.splitlines(True), filename)
    scope = dict(python.globals)
    exec(compile(python.src, filename, "exec"), scope)
    return Stage(graph, python.src, scope["forward"])


@dataclass(frozen=True)
class Asked:
    """What an exit is asked about the samples that are still inside.

    Attributes:
        index: which exit.
        branch: its branch.
        features: what it reads.
        rows: which samples these are; None for all.
        earlier: (B, index, m) what earlier exits said; None where nobody needs it.
        answered: (B, index, m) their class logits, which may differ; None where nobody needs them.
    """

    index: int
    branch: Branch
    features: Sequence[Tensor]
    rows: Tensor | None
    earlier: Tensor | None
    answered: Tensor | None


@dataclass(frozen=True)
class Told:
    """An exit's answer.

    Attributes:
        leave: (B,) who leaves.
        classify: from rows to their class logits; None stands for all rows.
        said: (B, m) what later exits are told, where one of them needs it.
        answered: (B, m) class logits, where the policy asks for them again at later exits.
    """

    leave: Tensor
    classify: Callable[[Tensor | None], Tensor]
    said: Callable[[], Tensor]
    answered: Tensor | None = None


Decide: TypeAlias = Callable[[Asked], Told]


def by_policy(policy: Policy) -> Decide | None:
    """Lets each exit's gate or class logits decide; None where no branch is to run."""
    if policy.reads == "nothing":
        return None

    def decide(asked: Asked) -> Told:
        branch, earlier = asked.branch, asked.earlier if asked.branch.reads_earlier else None
        state = branch.embed(*branch.reduce(*asked.features), earlier=earlier)

        def said() -> Tensor:
            return branch.said(state)

        if policy.reads == "gate":
            scores = branch.score(branch.evidence(state, earlier), policy.alpha)
            leave = policy.leaves(asked.index, scores)
            return Told(leave, lambda taken: branch.classify(_pick(state, taken)), said)
        logits = branch.classify(state)
        scores = logits
        if policy.reads == "history":
            scores = _joined(asked.answered, logits)
        leave = policy.leaves(asked.index, scores)
        answered = logits if policy.reads == "history" else None
        return Told(leave, lambda taken: _pick(logits, taken), said, answered)

    return decide


def by_index(exit_index: Tensor) -> Decide:
    """Lets sample b leave at `exit_index[b]`; no gate is asked."""

    def decide(asked: Asked) -> Told:
        branch, earlier = asked.branch, asked.earlier if asked.branch.reads_earlier else None

        def state(taken: Tensor | None) -> Tensor:
            reduced = branch.reduce(*(_pick(f, taken) for f in asked.features))
            return branch.embed(*reduced, earlier=_pick(earlier, taken))

        leave = _pick(exit_index, asked.rows) == asked.index
        return Told(
            leave,
            lambda taken: branch.classify(state(taken)),
            lambda: branch.said(state(None)),
        )

    return decide


def run(
    network: nn.Module,
    stages: Sequence[Stage],
    cuts: Sequence[Cut],
    branches: Sequence[Branch],
    images: Tensor,
    decide: Decide | None,
    keeps_said: bool = False,
) -> tuple[Tensor, Tensor]:
    """Runs each stage on the samples that are still inside.

    Args:
        images: (B, …), B ≥ 1.
        decide: who leaves where; None runs the plain network.
        keeps_said: whether a branch needs what earlier exits said.

    Returns:
        Logits (B, classes) and exit indices (B,), in the order of `images`.
    """
    live: Any = (images,)
    rows: Tensor | None = None
    inside = images.shape[0]
    left: list[tuple[int, Tensor | None, Tensor]] = []
    earlier: Tensor | None = None
    answered: Tensor | None = None
    for index, (stage, cut, branch) in enumerate(zip(stages, cuts, branches, strict=False)):
        live = stage.run(network, *live)
        if decide is None:
            continue
        features = [live[i] for i in cut.features]
        for at in cut.features:
            check_rows(live[at], cut.carried[at], inside)
        told = decide(Asked(index, branch, features, rows, earlier, answered))
        leaving = told.leave.nonzero().squeeze(1)
        gone = leaving.shape[0]
        if gone == inside:
            left.append((index, rows, told.classify(None)))
            inside = 0
            break
        if keeps_said:
            earlier = _joined(earlier, told.said())
        if told.answered is not None:
            answered = _joined(answered, told.answered)
        if gone == 0:
            continue
        left.append((index, _pick(rows, leaving, leaving), told.classify(leaving)))
        staying = (~told.leave).nonzero().squeeze(1)
        earlier, answered = _pick(earlier, staying), _pick(answered, staying)
        live = tuple(
            take_rows(value, how, staying, inside)
            for value, how in zip(live, cut.carried, strict=True)
        )
        rows = _pick(rows, staying, staying)
        inside -= gone
    if inside:
        left.append((len(cuts), rows, stages[-1].run(network, *live)))
    return _in_order(left, images)


def _pick(values: Any, taken: Tensor | None, otherwise: Tensor | None = None) -> Any:
    """`values[taken]`; all of `values` where taken is None; `otherwise` where values is None."""
    if values is None:
        return otherwise
    return values if taken is None else values[taken]


def _joined(earlier: Tensor | None, own: Tensor) -> Tensor:
    """(B, index, m) and (B, m) → (B, index+1, m)."""
    own = own.unsqueeze(1)
    return own if earlier is None else torch.cat([earlier, own], 1)


def _in_order(
    left: Sequence[tuple[int, Tensor | None, Tensor]], images: Tensor
) -> tuple[Tensor, Tensor]:
    size = images.shape[0]
    exit_index = torch.empty(size, dtype=torch.int64, device=images.device)
    if len(left) == 1:
        index, _, logits = left[0]
        return logits, exit_index.fill_(index)
    rows = []
    for index, taken, _ in left:
        assert taken is not None
        exit_index[taken] = index
        rows.append(taken)
    joined = torch.cat([logits for _, _, logits in left])
    return joined[torch.cat(rows).argsort()], exit_index
