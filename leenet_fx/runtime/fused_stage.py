"""A stage and the deciding part of the exit behind it, as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from leenet_fx.parts.branches import Branch
from leenet_fx.runtime.stages import Cut, Stage, make_function

FusedStage: TypeAlias = Callable[..., tuple[tuple[Any, ...], Tensor, Tensor, Tensor | None]]
"""`(network, earlier, alpha, *live)` → what an exit hears: the values that cross to the next stage;
the state or class logits that `classify` starts from; gate logits (B,) or class logits (B, m) of
all who arrived; and (B, m) what later exits are told, None where none of them asks."""


@dataclass(frozen=True)
class DecisionSpec:
    """What a policy asks of every exit.

    Attributes:
        by_gate: whether the gate decides, so that only leaving samples are classified.
        dialled: whether there is an α.
        tells: whether any exit asks what earlier ones said.
    """

    by_gate: bool
    dialled: bool
    tells: bool


def make_fused_stage(
    stage: Stage, cut: Cut, branch: Branch, index: int, question: DecisionSpec
) -> FusedStage:
    """One function for a stage and the exit behind it.

    Branches made of the library's own parts are written out, operation by operation, into the
    stage's graph: on a small network the calls between parts take longer than what they compute.
    Layers are still called, so their hooks run. Another's branch may ask for anything at any time,
    and so its methods are called.

    Args:
        stage: the piece of the network.
        cut: what crosses behind it.
        branch: the exit.
        index: of the exit.
        question: what is asked of it.
    """
    graph = _written_out(stage, cut, branch, index, question)
    if graph is not None:
        return make_function(graph)[1]
    run, features, name = stage.run, cut.features, str(index)

    def segment(
        network: nn.Module, previous_logits: Tensor | None, alpha: Tensor | None, *live: Any
    ) -> Any:
        live = run(network, *live)
        exits: Any = network._modules["exits"]
        read = [live[i] for i in features]
        return live, *_decide(exits._modules[name], read, previous_logits, alpha, question)

    return segment


def _decide(
    branch: Any, read: Sequence[Any], previous_logits: Any, alpha: Any, question: DecisionSpec
) -> tuple[Any, Any, Any]:
    if not branch.reads_previous_logits:
        previous_logits = None
    hidden = branch.hidden(*branch.pool(*read), previous_logits=previous_logits)
    passed_logits = branch.passed_logits(hidden) if question.tells else None
    if question.by_gate:
        return (
            hidden,
            branch.gate_logit(branch.gate_inputs(hidden, previous_logits), alpha),
            passed_logits,
        )
    logits = branch.classify(hidden)
    return logits, logits, passed_logits


def _written_out(
    stage: Stage, cut: Cut, branch: Branch, index: int, question: DecisionSpec
) -> fx.Graph | None:
    if not all(_is_layer(part) or _is_own(part) for part in branch.modules()):
        return None
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    previous_logits, alpha = (
        fx.Proxy(graph.placeholder(name), tracer) for name in ("previous_logits", "alpha")
    )
    live: Any = graph.graph_copy(stage.graph, {})
    shadow = _shadow(branch, f"exits.{index}", tracer)
    read = [fx.Proxy(live[i], tracer) for i in cut.features]
    try:
        found = _decide(
            shadow, read, previous_logits, alpha if question.dialled else None, question
        )
    except (fx.proxy.TraceError, AttributeError, TypeError, RuntimeError):
        return None
    graph.output((live, *(tracer.create_arg(value) for value in found)))
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    return graph


_CONTAINERS = (nn.Sequential, nn.ModuleList)


def _is_layer(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.nn") and type(part) not in _CONTAINERS


def _is_own(part: nn.Module) -> bool:
    return type(part) in _CONTAINERS or type(part).__module__.startswith("leenet_fx.parts.")


def _shadow(part: nn.Module, path: str, tracer: fx.proxy.GraphAppendingTracer) -> Any:
    """The part with nodes in the place of its tensors and layers.

    torch.fx's own tracer changes what all modules do while it runs, and this runs when a network
    first decides, perhaps beside others in other threads.
    """
    if _is_layer(part):
        return lambda *given: tracer.create_proxy("call_module", path, given, {})
    made = object.__new__(type(part))
    held: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    made.__dict__.update({**part.__dict__, **held})
    for name, child in part._modules.items():
        if child is not None:
            # Containers look for their children in one place, other parts in the other.
            shadow = _shadow(child, f"{path}.{name}", tracer)
            made.__dict__[name] = made.__dict__["_modules"][name] = shadow
    for name in (*part._parameters, *part._buffers):
        made.__dict__[name] = tracer.create_proxy("get_attr", f"{path}.{name}", (), {})
    return made
