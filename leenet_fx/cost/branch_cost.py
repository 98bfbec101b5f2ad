"""The cost of a branch in its three steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leenet_fx.graph.cloning import clone
from leenet_fx.graph.node_costs import measure_call
from leenet_fx.parts.branches import Branch


@dataclass(frozen=True)
class Cost:
    """FLOPs (2 x MACs), parameters, and bytes of activations written, for one image."""

    flops: int
    params: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.params + other.params, self.bytes + other.bytes)


@dataclass(frozen=True)
class BranchCost:
    """The cost of a branch, for one image.

    Attributes:
        hidden: pooling, neck, and what gate and classifier share.
        gate: the gate logit.
        classify: the class logits.
        state: pooling and state, which are not in `hidden` then; 0 for branches without a state.
    """

    hidden: Cost
    gate: Cost
    classify: Cost
    state: Cost = Cost(0, 0, 0)


def branch_costs(branches: Iterable[Branch]) -> tuple[BranchCost, ...]:
    """Count the costs of branches on meta tensors; their weights are not changed.

    Parameters that gate and classifier share count as `hidden`.

    Args:
        branches: of all exits, in order.
    """
    costs = []
    state: Tensor | None = None
    for branch in branches:
        cost, state = _branch_cost(branch, state)
        costs.append(cost)
    return tuple(costs)


def _branch_cost(branch: Branch, previous_state: Tensor | None) -> tuple[BranchCost, Tensor | None]:
    """Return the cost of a branch, and its state if it carries one."""
    dtype = next((p.dtype for p in branch.parameters()), torch.float32)
    meta = clone(branch, "meta").eval()
    for parameter in meta.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_()
    assert isinstance(meta, Branch)
    features = [torch.empty(f.shape, dtype=dtype, device="meta") for f in branch.features]
    site = branch.site
    previous_logits = None
    if branch.reads_previous_logits:
        previous_logits = torch.empty(
            1, site.position, site.num_classes, dtype=dtype, device="meta"
        )

    def compute_state(*inputs: Tensor) -> Tensor:
        return meta.state(*meta.pool(*inputs), previous_state=previous_state)

    def compute_hidden(*inputs: Tensor) -> Tensor:
        pooled = inputs if meta.carries_state else meta.pool(*inputs)
        return meta.hidden(*pooled, previous_logits=previous_logits)

    def compute_gate(hidden: Tensor) -> Tensor:
        return meta.gate_logit(meta.gate_inputs(hidden, previous_logits))

    state, state_cost = None, Cost(0, 0, 0)
    if meta.carries_state:
        state, state_cost = _measure(compute_state, *features)
        state_cost = replace(state_cost, params=_count(_parameters_behind(state)))
        state = state.detach()
    hidden, hidden_cost = _measure(compute_hidden, *(features if state is None else [state]))
    gate_logit, gate_cost = _measure(compute_gate, hidden.detach())
    class_logits, classifier_cost = _measure(meta.classify, hidden.detach())
    hidden_uses, gate_uses, classifier_uses = map(
        _parameters_behind, (hidden, gate_logit, class_logits)
    )
    gate_params = _count(gate_uses - hidden_uses - classifier_uses)
    classifier_params = _count(classifier_uses - hidden_uses - gate_uses)
    shared_params = _count(meta.parameters()) - gate_params - classifier_params
    hidden_params = shared_params - state_cost.params
    cost = BranchCost(
        hidden=replace(hidden_cost, params=hidden_params),
        gate=replace(gate_cost, params=gate_params),
        classify=replace(classifier_cost, params=classifier_params),
        state=state_cost,
    )
    return cost, state


def _measure(call: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Cost]:
    """Return the result of a call with its autograd graph, and its cost without parameters."""
    with torch.enable_grad():
        result, flops, written = measure_call(call, *inputs)
    return result, Cost(flops, 0, written)


def _parameters_behind(result: Tensor) -> set[Tensor]:
    """Return the parameters that a result depends on, from its autograd graph."""
    parameters: set[Tensor] = set()
    seen = {result.grad_fn}
    waiting = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        # Only nodes that accumulate a leaf's gradient hold a variable.
        variable = getattr(node, "variable", None)
        if variable is not None:
            parameters.add(variable)
        following = {next_node for next_node, _ in node.next_functions} - seen
        seen |= following
        waiting.extend(following)
    return parameters


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
