"""Branches: what hangs on an exit: a body, a head, a gate."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.parts.gates import Gate, get_gate, reset_row
from leenet_fx.parts.heads import Head, LinearHead, MeansHead, get_head
from leenet_fx.parts.necks import Conv, Flatten, Neck, NeckFactory, NormPoolNeck, Pool
from leenet_fx.registry import Registry, unknown_name

__all__ = ["Branch", "ExitSite", "FeatureShape"]


class Branch(nn.Module, ABC):
    """An exit in steps, so that each runs only for the samples that need it.

    reduce → embed → evidence → score, and embed → classify. A branch of one's own takes a `Site`
    (and options by name, if any) and defines `embed`, `score`, `classify` and the groups of
    parameters.

    Attributes:
        site: where it stands.
        reads_earlier: whether `embed` and `evidence` need what earlier exits said.
    """

    def __init__(self, site: ExitSite, *, reads_previous_logits: bool = False) -> None:
        super().__init__()
        self.site = site
        self.reads_previous_logits = reads_previous_logits and site.position > 0

    @property
    def features(self) -> tuple[FeatureShape, ...]:
        """The tensors it reads."""
        return self.site.features

    @property
    def pooling(self) -> str:
        """What `reduce` does, in words: branches that agree in it can share what was kept."""
        return type(self).__qualname__

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        """What the branch needs of its features, each batch first; uses no parameter.

        With a frozen backbone this is what training keeps, so the smaller, the better.
        """
        return features

    @abstractmethod
    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        """The state of each sample.

        Args:
            reduced: what `reduce` left.
            earlier: (B, position, m) what earlier exits `said`, where `reads_earlier`.

        Returns:
            (B, n).
        """

    def gate_inputs(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        """What the gate judges by, (B, k); uses no parameter that gates train."""
        del previous_logits
        return hidden

    @abstractmethod
    def gate_logit(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """(B, k) → gate logits (B,), before the sigmoid.

        Args:
            evidence: what `evidence` gave.
            alpha: weight of the cost, for gates with a dial: a number, or one for each sample.
        """

    @abstractmethod
    def classify(self, hidden: Tensor) -> Tensor:
        """(B, n) → class logits (B, num_classes)."""

    def passed_logits(self, hidden: Tensor) -> Tensor:
        """(B, n) → what later exits are told (B, num_classes)."""
        return self.classify(hidden)

    @abstractmethod
    def gate_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the gates' objective."""

    @abstractmethod
    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters trained by the classifiers' objective."""

    def neck_parameters(self) -> list[nn.Parameter]:
        """Those of the classifiers' that learn at the rate of a deep network."""
        return []

    def ensemble_parameters(self) -> list[nn.Parameter]:
        """Parameters trained once classifiers are."""
        return []

    @abstractmethod
    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        """Draws the gate anew, so that it opens for about a share of `chance` of the samples."""

    def fit_input_statistics(self, *pooled: Tensor) -> None:
        """Lets the branch scale what `reduce` leaves by what it is on training images; optional.

        Called before classifiers are trained; a branch that has trained keeps the scale it has.

        Args:
            reduced: each (n, …).
        """

    def fit_gate_statistics(self, gate_inputs: Tensor) -> None:
        """Lets the gate scale its inputs by what they are on training images; optional.

        Args:
            evidence: (n, k).
        """

    def begin_phase(self, group: str) -> None:
        """Told before a step which group of `leenet_fx.methods.phases.Group` it trains; optional."""

    def count(self, labels: Tensor, *pooled: Tensor) -> None:
        """Takes a batch into account, for branches whose classifier is counted, not trained.

        Args:
            labels: (B,).
            reduced: what `reduce` left.

        Raises:
            InputError: the branch counts nothing.
        """
        raise InputError(
            f"{type(self).__name__} has no class means: attach with branch_options={{'head': "
            "'means'}."
        )

    def counted(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Told once every batch was counted.

        Args:
            summed: sums a tensor over processes.
        """

    def forward(
        self, *features: Tensor, previous_logits: Sequence[tuple[Tensor, ...]] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features → class logits (B, m), gate logits (B,), what later exits are told (B, m).

        Args:
            features: what the exit reads.
            earlier: what this method gave at each exit before.
        """
        heard = (
            torch.stack([passed_logits for _, _, passed_logits in previous_logits], 1)
            if previous_logits
            else None
        )
        hidden = self.hidden(*self.pool(*features), previous_logits=heard)
        return (
            self.classify(hidden),
            self.gate_logit(self.gate_inputs(hidden, heard)),
            self.passed_logits(hidden),
        )


BranchFactory: TypeAlias = Callable[..., Branch]
"""(site, **options) → branch."""

_branches: Registry[BranchFactory] = Registry("branch", "leenet_fx.branches")
register_branch = _branches.register
list_branches = _branches.names
get_branch = _branches.get


class _Composed(Branch):
    """What all branches on a body share."""

    def __init__(self, neck: Neck, *, reads_previous_logits: bool = False) -> None:
        super().__init__(neck.site, reads_previous_logits=reads_previous_logits)
        self.neck = neck

    @property
    def pooling(self) -> str:
        return self.neck.pooling

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return self.neck.pool(*features)

    def neck_parameters(self) -> list[nn.Parameter]:
        return list(self.neck.parameters())

    def fit_input_statistics(self, *pooled: Tensor) -> None:
        self.neck.measure(*pooled)


class _Gated(_Composed):
    """What branches with a gate of its own share."""

    def __init__(
        self, neck: Neck, head: Head, gate: Gate, *, reads_previous_logits: bool = False
    ) -> None:
        super().__init__(neck, reads_previous_logits=reads_previous_logits)
        self.head, self.gate = head, gate

    def gate_logit(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        scores: Tensor = self.gate(gate_inputs, alpha)
        return scores

    def gate_parameters(self) -> list[nn.Parameter]:
        return list(self.gate.parameters())

    def classifier_parameters(self) -> list[nn.Parameter]:
        return [*self.neck.parameters(), *self.head.classifier_parameters()]

    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        self.gate.reset(generator, chance)

    def fit_gate_statistics(self, gate_inputs: Tensor) -> None:
        self.gate.measure(gate_inputs)


class FeatureGatedBranch(_Gated):
    """Body, then a gate and a linear head side by side: the head runs only for who leaves."""

    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.neck(*pooled)
        return embedded

    def classify(self, hidden: Tensor) -> Tensor:
        return self.head.classify(self.head(hidden, None))


class LogitGatedBranch(_Gated):
    """Body, head, then a gate on the head's answer: the head runs for all that arrive."""

    def __init__(self, neck: Neck, head: Head, gate: Gate) -> None:
        previous_logits = head.reads_previous_logits or gate.reads_previous_logits
        super().__init__(neck, head, gate, reads_previous_logits=previous_logits)

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

    def count(self, labels: Tensor, *pooled: Tensor) -> None:
        if not isinstance(self.head, MeansHead):
            super().count(labels, *pooled)
        else:
            self.head.count(self.neck(*pooled), labels)

    def counted(self, summed: Callable[[Tensor], Tensor]) -> None:
        if isinstance(self.head, MeansHead):
            self.head.counted(summed)


class ProjectionBranch(_Composed):
    """A body, then one projection n→m+1, gate first (LEENet's proposal)."""

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

    def reset_gate(self, generator: torch.Generator, chance: float) -> None:
        reset_row(self.projection.weight[:1], self.projection.bias[:1], generator, chance)


def compose(
    neck: NeckFactory,
    site: ExitSite,
    *,
    head: str = "linear",
    gate: str | None = None,
    **options: Any,
) -> Branch:
    """A branch of parts.

    Args:
        body: makes the body.
        site: where the branch stands.
        head: a registered head, or "projection": one map n→m+1 with the gate in it.
        gate: a registered gate; None takes "confidence". A gate on features goes with a linear
            head, which then runs only for samples that leave.
        options: for the body.

    Raises:
        InputError: parts that do not go together, an option that the body does not take.
        UnknownNameError: no such head or gate.
    """
    known = list(inspect.signature(neck).parameters)[1:]
    for name in options:
        if name not in known:
            raise unknown_name("branch option", name, ("head", "gate", *known))
    if head == "projection":
        if gate is not None:
            raise InputError(f"head='projection' has a gate of its own: leave out gate={gate!r}.")
        return ProjectionBranch(neck(site, **options))
    made = neck(site, **options)
    head_type, gate_type = get_head(head), get_gate("confidence" if gate is None else gate)
    made_head = head_type(site, made.width)
    made_gate = gate_type(site, made.width)
    if gate_type.reads == "features":
        if not isinstance(made_head, LinearHead):
            raise InputError(
                f"gate='{gate}' reads features, and goes with head='linear'; with head='{head}' "
                "take a gate that reads the head's answer: 'confidence' or 'history'."
            )
        return FeatureGatedBranch(made, made_head, made_gate)
    return LogitGatedBranch(made, made_head, made_gate)


for _name, _body in (
    ("pool", Pool),
    ("flatten", Flatten),
    ("bnpool", NormPoolNeck),
    ("conv", Conv),
):
    register_branch(_name)(partial(compose, _body))


def make_branch(factory: BranchFactory, site: ExitSite, options: Mapping[str, Any]) -> Branch:
    """A branch; options that its factory does not take are named.

    Raises:
        InputError, UnknownNameError: options that do not fit.
    """
    takes = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        for name in options:
            if name not in takes:
                raise unknown_name("branch option", name, list(takes)[1:])
    return factory(site, **options)


def run_branches(
    branches: Iterable[Branch], pooled: Iterable[Sequence[Tensor]]
) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Every exit's state, what earlier exits said, and its evidence, for samples that pass all.

    Args:
        branches: in order.
        reduced: what `reduce` left at each.

    Returns:
        For each exit (state, earlier, evidence).
    """
    heard: list[Tensor] = []
    answers = []
    for branch, read in zip(branches, pooled, strict=True):
        previous_logits = torch.stack(heard, 1) if branch.reads_previous_logits else None
        hidden = branch.hidden(*read, previous_logits=previous_logits)
        heard.append(branch.passed_logits(hidden))
        answers.append((hidden, previous_logits, branch.gate_inputs(hidden, previous_logits)))
    return answers
