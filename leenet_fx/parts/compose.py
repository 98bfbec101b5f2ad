"""Branches composed of a neck, a head and a gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.branches import Branch, register_branch
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.parts.gates import Gate, get_gate, reset_linear_gate
from leenet_fx.parts.heads import Head, LinearHead, MeansHead, get_head
from leenet_fx.parts.necks import (
    ConvNeck,
    ConvXNeck,
    FlattenNeck,
    MixPoolNeck,
    Neck,
    NeckFactory,
    NormPoolNeck,
    PoolNeck,
    StridedConvNeck,
)
from leenet_fx.parts.prototypes import PrototypeNeck
from leenet_fx.parts.side import SideNeck
from leenet_fx.parts.token_heads import TokenNeck
from leenet_fx.registry import unknown_name


class NeckBranch(Branch):
    """Base of branches that begin with a neck."""

    def __init__(self, neck: Neck, *, reads_previous_logits: bool = False) -> None:
        super().__init__(neck.site, reads_previous_logits=reads_previous_logits)
        self.neck = neck
        self.carries_state = neck.carries_state

    @property
    def pooling(self) -> str:
        return self.neck.pooling

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return self.neck.pool(*features)

    def state(self, *pooled: Tensor, previous_state: Tensor | None = None) -> Tensor:
        return self.neck.state(*pooled, previous_state=previous_state)

    def neck_parameters(self) -> list[nn.Parameter]:
        return list(self.neck.parameters())

    def fit_input_statistics(self, *pooled: Tensor) -> None:
        self.neck.fit_statistics(*pooled)


class GatedBranch(NeckBranch):
    """Base of branches with a separate head and gate."""

    def __init__(
        self, neck: Neck, head: Head, gate: Gate, *, reads_previous_logits: bool = False
    ) -> None:
        super().__init__(neck, reads_previous_logits=reads_previous_logits)
        self.head, self.gate = head, gate

    def gate_logit(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        gate_logits: Tensor = self.gate(gate_inputs, alpha)
        return gate_logits

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.gate.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return [*self.neck.parameters(), *self.head.classifier_parameters()]

    def reset_gate(self, generator: torch.Generator, probability: float) -> None:
        self.gate.reset(generator, probability)

    def fit_gate_statistics(self, gate_inputs: Tensor) -> None:
        self.gate.fit_statistics(gate_inputs)


class FeatureGatedBranch(GatedBranch):
    """Neck, then gate and linear head in parallel; the head runs only for samples that exit."""

    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        vectors: Tensor = self.neck(*pooled)
        return vectors

    def classify(self, hidden: Tensor) -> Tensor:
        return self.head.classify(self.head(hidden, None))


class LogitGatedBranch(GatedBranch):
    """Neck, head, then a gate on the class logits; the head runs for all samples that arrive."""

    def __init__(self, neck: Neck, head: Head, gate: Gate) -> None:
        reads_previous_logits = head.reads_previous_logits or gate.reads_previous_logits
        super().__init__(neck, head, gate, reads_previous_logits=reads_previous_logits)

    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.head(self.neck(*pooled), previous_logits)
        return hidden

    def gate_inputs(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        return self.gate.gate_inputs(self.classify(hidden), previous_logits)

    def classify(self, hidden: Tensor) -> Tensor:
        return self.head.classify(hidden)

    def passed_logits(self, hidden: Tensor) -> Tensor:
        return self.head.passed_logits(hidden)

    def ensemble_parameters(self) -> list[nn.Parameter]:
        return self.head.ensemble_parameters()

    def begin_phase(self, group: str) -> None:
        self.head.begin_phase(group)

    def accumulate_class_means(self, labels: Tensor, *pooled: Tensor) -> None:
        if not isinstance(self.head, MeansHead):
            super().accumulate_class_means(labels, *pooled)
        else:
            self.head.accumulate_class_means(labels, self.neck(*pooled))

    def finish_class_means(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        if isinstance(self.head, MeansHead):
            self.head.finish_class_means(sum_over_processes)


class ProjectionBranch(NeckBranch):
    """Neck, then one linear map to m+1 outputs, the gate logit first (proposed in LEENet)."""

    def __init__(self, neck: Neck) -> None:
        super().__init__(neck)
        self.projection = nn.Linear(neck.width, neck.site.num_classes + 1)

    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.projection(self.neck(*pooled))
        return hidden

    def gate_logit(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        return gate_inputs[:, 0]

    def classify(self, hidden: Tensor) -> Tensor:
        return hidden[:, 1:]

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.projection.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return [*self.neck.parameters(), *self.projection.parameters()]

    def reset_gate(self, generator: torch.Generator, probability: float) -> None:
        weight, bias = self.projection.weight[:1], self.projection.bias[:1]
        reset_linear_gate(weight, bias, generator, probability)


def compose(
    neck: NeckFactory,
    site: ExitSite,
    *,
    head: str = "linear",
    gate: str | None = None,
    **options: Any,
) -> Branch:
    """Build a branch from a neck, a head and a gate.

    Args:
        neck: neck factory.
        site: features and position.
        head: a registered head, or "projection": one linear map for class logits and gate logit.
        gate: a registered gate; None selects "confidence". A gate on features requires a linear
            head, which then runs only for samples that exit.
        options: for the neck.

    Raises:
        InputError: incompatible parts, or an option whose value does not fit.
        UnknownNameError: no such head, gate or option.
    """
    known = list(inspect.signature(neck).parameters)[1:]
    for name in options:
        if name not in known:
            raise unknown_name("branch option", name, ("head", "gate", *known))
    if head == "projection":
        if gate is not None:
            raise InputError(f"head='projection' includes a gate: omit gate={gate!r}.")
        return ProjectionBranch(neck(site, **options))
    built_neck = neck(site, **options)
    head_type, gate_type = get_head(head), get_gate("confidence" if gate is None else gate)
    built_head = head_type(site, built_neck.width)
    if built_neck.carries_state and isinstance(built_head, MeansHead):
        raise InputError(
            f"head='{head}' has no trained weights, and a neck that carries a state needs training:"
            " choose another head, or branch='pool'."
        )
    built_gate = gate_type(site, built_neck.width)
    if gate_type.reads == "features":
        if not isinstance(built_head, LinearHead):
            raise InputError(
                f"gate='{gate}' reads features and requires head='linear'; with head='{head}' "
                "choose a gate that reads class logits: 'confidence', 'history' or 'alpha'."
            )
        return FeatureGatedBranch(built_neck, built_head, built_gate)
    return LogitGatedBranch(built_neck, built_head, built_gate)


for _name, _neck in (
    ("pool", PoolNeck),
    ("flatten", FlattenNeck),
    ("bnpool", NormPoolNeck),
    ("conv", ConvNeck),
    ("convx", ConvXNeck),
    ("mixpool", MixPoolNeck),
    ("strided", StridedConvNeck),
    ("side", SideNeck),
    ("prototype", PrototypeNeck),
    ("lgvit", TokenNeck),
):
    register_branch(_name)(partial(compose, _neck))
