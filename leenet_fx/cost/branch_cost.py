"""The cost of a branch in its three steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leenet_fx.graph.node_costs import measure_call
from leenet_fx.graph.tracer import clone
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
    """

    hidden: Cost
    gate: Cost
    classify: Cost


def branch_cost(branch: Branch) -> BranchCost:
    """Count the cost of a branch on meta tensors; its weights are not changed.

    Parameters that gate and classifier share count as `hidden`.
    """
    dtype = next((p.dtype for p in branch.parameters()), torch.float32)
    meta = clone(branch, "meta").eval()
    assert isinstance(meta, Branch)
    features = [torch.empty(f.shape, dtype=dtype, device="meta") for f in branch.features]
    site = branch.site
    previous_logits = None
    if branch.reads_previous_logits:
        previous_logits = torch.empty(
            1, site.position, site.num_classes, dtype=dtype, device="meta"
        )

    def compute_hidden(*inputs: Tensor) -> Tensor:
        return meta.hidden(*meta.pool(*inputs), previous_logits=previous_logits)

    def compute_gate(hidden: Tensor) -> Tensor:
        return meta.gate_logit(meta.gate_inputs(hidden, previous_logits))

    hidden, hidden_flops, hidden_bytes = measure_call(compute_hidden, *features)
    _, gate_flops, gate_bytes = measure_call(compute_gate, hidden)
    _, classifier_flops, classifier_bytes = measure_call(meta.classify, hidden)
    hidden_uses = _parameters_of(compute_hidden, features, meta)
    gate_uses = _parameters_of(compute_gate, [hidden], meta)
    classifier_uses = _parameters_of(meta.classify, [hidden], meta)
    gate_params = _count(gate_uses - hidden_uses - classifier_uses)
    classifier_params = _count(classifier_uses - hidden_uses - gate_uses)
    hidden_params = _count(meta.parameters()) - gate_params - classifier_params
    return BranchCost(
        hidden=Cost(hidden_flops, hidden_params, hidden_bytes),
        gate=Cost(gate_flops, gate_params, gate_bytes),
        classify=Cost(classifier_flops, classifier_params, classifier_bytes),
    )


@torch.enable_grad()
def _parameters_of(
    call: Callable[..., Tensor], inputs: Sequence[Tensor], owner: nn.Module
) -> set[Tensor]:
    """Return the owner's parameters that the result of a call depends on."""
    parameters = [p.requires_grad_() for p in owner.parameters() if p.is_floating_point()]
    result = call(*inputs)
    if not result.requires_grad:
        return set()
    gradients = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
