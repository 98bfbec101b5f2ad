"""A stage and the decision of the exit behind it, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from leenet_fx.graph import compat
from leenet_fx.parts.branches import Branch
from leenet_fx.runtime.stages import Cut, Stage, make_function

Decision: TypeAlias = tuple[
    tuple[Any, ...], Tensor | None, Tensor | None, Tensor | None, Tensor | None
]
"""Outputs of a stage and the exit behind it: the values at the cut; the tensor from which class
logits are computed; gate logits (B,) or class logits (B, classes), as the policy reads; logits
(B, classes) for later exits, None if no exit reads those of earlier exits; the state (B, …), None
if branches carry none. All but the first and the last are None for an exit that is not evaluated
and only passes its state on."""

StageFunction: TypeAlias = Callable[..., Decision]
"""`(network, previous_logits, previous_state, alpha, *live)` → `Decision`."""

Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class DecisionSpec:
    """What a policy reads of an exit.

    Attributes:
        by_gate: whether it reads gate logits, so that only exiting samples are classified.
        has_alpha: whether gates are conditioned on α.
        passes_logits: whether any exit reads the logits of earlier exits.
        is_evaluated: whether the policy decides there; otherwise only the state is computed.
    """

    by_gate: bool
    has_alpha: bool
    passes_logits: bool
    is_evaluated: bool = True


class FusedStage:
    """A stage and the deciding part of the exit behind it.

    A branch that `can_inline` accepts is inlined, operation by operation, into the stage's graph:
    on a small network the calls of neck, head and gate take longer than what they compute. While a
    forward hook or forward pre-hook is registered on a part of the branch or on one of its layers,
    or for all modules, the parts are called one by one instead, and hooks run.

    Attributes:
        fused: one function for stage and exit.
        stepwise: the same, calling the stage and then each part of the branch.
    """

    __slots__ = ("_hooks", "fused", "stepwise")

    def __init__(
        self,
        stage: Stage,
        run: Callable[..., Any],
        cut: Cut,
        branch: Branch,
        index: int,
        spec: DecisionSpec,
        wrap: Wrap,
    ) -> None:
        """Build both functions.

        Args:
            stage: the stage.
            run: the stage's function, as `wrap` returned it.
            cut: the cut behind the stage.
            branch: the exit's branch.
            index: index of the exit.
            spec: what the policy reads.
            wrap: returns the function to call for a generated one.
        """
        self.stepwise = _stepwise(run, cut, index, spec)
        if can_inline(branch):
            fused = make_function(_inline(stage, cut, branch, index, spec))[1]
        else:
            fused = _stepwise(stage.run, cut, index, spec)
        self.fused: StageFunction = wrap(fused)
        parts = [part for part in branch.modules() if part is not branch]
        # Dictionaries that torch adds hooks to, so a hook is noticed whenever it is registered.
        self._hooks = (
            *(hooks for part in parts for hooks in compat.forward_hooks(part)),
            *compat.global_forward_hooks(),
        )

    def __call__(
        self,
        network: nn.Module,
        previous_logits: Tensor | None,
        previous_state: Tensor | None,
        alpha: Tensor | None,
        *live: Any,
    ) -> Decision:
        """Run the stage and the exit's decision.

        Args:
            network: the module whose weights are read.
            previous_logits: (B, index, classes) of earlier exits, if a branch reads them.
            previous_state: (B, …) of the exit before, if branches carry a state.
            alpha: scalar, for gates conditioned on it.
            live: the values at the cut before the stage; the images (B, …) for the first.
        """
        run = self.stepwise if any(self._hooks) else self.fused
        return run(network, previous_logits, previous_state, alpha, *live)


def can_inline(branch: Branch) -> bool:
    """Return whether a branch's operations are those of its code, whatever its state.

    True if every part is a class of `leenet_fx.parts` or `torch.nn` with the `forward` of its
    class. Third-party parts may be dynamic, so they are called, not inlined.
    """
    return all(
        (_is_layer(part) or _is_library_part(part)) and "forward" not in part.__dict__
        for part in branch.modules()
    )


def _stepwise(run: Callable[..., Any], cut: Cut, index: int, spec: DecisionSpec) -> StageFunction:
    features, name = cut.features, str(index)

    def run_and_decide(
        network: nn.Module,
        previous_logits: Tensor | None,
        previous_state: Tensor | None,
        alpha: Tensor | None,
        *live: Any,
    ) -> Decision:
        live = run(network, *live)
        exits: Any = network._modules["exits"]
        read = [live[i] for i in features]
        branch = exits._modules[name]
        return live, *_decide(branch, read, previous_logits, previous_state, alpha, spec)

    return run_and_decide


def _decide(
    branch: Any,
    features: Sequence[Any],
    previous_logits: Any,
    previous_state: Any,
    alpha: Any,
    spec: DecisionSpec,
) -> tuple[Any, Any, Any, Any]:
    if not branch.reads_previous_logits:
        previous_logits = None
    inputs, state = branch.hidden_inputs(branch.pool(*features), previous_state)
    if not spec.is_evaluated:
        return None, None, None, state
    hidden = branch.hidden(*inputs, previous_logits=previous_logits)
    passed_logits = branch.passed_logits(hidden) if spec.passes_logits else None
    if spec.by_gate:
        gate_inputs = branch.gate_inputs(hidden, previous_logits)
        return hidden, branch.gate_logit(gate_inputs, alpha), passed_logits, state
    logits = branch.classify(hidden)
    return logits, logits, passed_logits, state


def _inline(stage: Stage, cut: Cut, branch: Branch, index: int, spec: DecisionSpec) -> fx.Graph:
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    previous_logits, previous_state, alpha = (
        fx.Proxy(graph.placeholder(name), tracer)
        for name in ("previous_logits", "previous_state", "alpha")
    )
    live: Any = graph.graph_copy(stage.graph, {})
    features = [fx.Proxy(live[i], tracer) for i in cut.features]
    outputs = _decide(
        _symbolic(branch, f"exits.{index}", tracer),
        features,
        previous_logits,
        # At the first exit there is none.
        previous_state if index else None,
        alpha if spec.has_alpha else None,
        spec,
    )
    graph.output((live, *(tracer.create_arg(value) for value in outputs)))
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    return graph


_CONTAINERS = (nn.Sequential, nn.ModuleList)
_LAYERS = ("torch.nn.", "leenet_fx.parts.batch_norm")
"""Modules whose classes are called as they are."""


def _is_layer(part: nn.Module) -> bool:
    return type(part).__module__.startswith(_LAYERS) and type(part) not in _CONTAINERS


def _is_library_part(part: nn.Module) -> bool:
    return type(part) in _CONTAINERS or type(part).__module__.startswith("leenet_fx.parts.")


def _symbolic(part: nn.Module, path: str, tracer: fx.proxy.GraphAppendingTracer) -> Any:
    """Return a copy of a part with proxies in place of its tensors and layers.

    Calls of the copy run `forward` without hooks. torch.fx's own tracer patches all modules while
    it runs; this leaves other threads alone.
    """
    if _is_layer(part):
        return lambda *inputs: tracer.create_proxy("call_module", path, inputs, {})
    cls = type(part)
    symbolic: Any = object.__new__(type(cls.__name__, (cls,), {"__call__": cls.forward}))
    empty: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    symbolic.__dict__.update({**part.__dict__, **empty})
    for name, child in part._modules.items():
        if child is not None:
            # Containers read their children from `_modules`, other parts as attributes.
            copied = _symbolic(child, f"{path}.{name}", tracer)
            symbolic.__dict__[name] = symbolic.__dict__["_modules"][name] = copied
    for name in (*part._parameters, *part._buffers):
        symbolic.__dict__[name] = tracer.create_proxy("get_attr", f"{path}.{name}", (), {})
    return symbolic
