"""Branches: neck, head and gate of an exit."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.registry import Registry, unknown_name

__all__ = ["Branch", "ExitSite", "FeatureShape"]


class Branch(nn.Module, ABC):
    """Base of exit branches, in stages that the runtime executes for as few samples as possible.

    The stages are `pool` → `hidden` → `gate_inputs` → `gate_logit` and `hidden` → `classify`. A
    branch that `carries_state` computes a `state` after `pool`: `hidden` reads it in place of the
    pooled features, and so does the `state` of the next exit.

    A subclass takes an `ExitSite` (and keyword options, if any) and defines `hidden`, `gate_logit`,
    `classify`, `gate_parameters`, `classifier_parameters` and `reset_gate`.

    Attributes:
        site: features and position that the branch is built for.
        reads_previous_logits: whether `hidden` and `gate_inputs` read the logits that earlier exits
            pass on; always false at the first exit.
        carries_state: whether the branch computes a `state`. All branches of a network do, or none.
    """

    carries_state: bool = False

    def __init__(self, site: ExitSite, *, reads_previous_logits: bool = False) -> None:
        super().__init__()
        self.site = site
        self.reads_previous_logits = reads_previous_logits and site.position > 0

    @property
    def features(self) -> tuple[FeatureShape, ...]:
        """Shapes of the tensors that the branch reads."""
        return self.site.features

    @property
    def pooling(self) -> str:
        """Description of `pool`; branches with equal descriptions can share a feature cache."""
        return type(self).__qualname__

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Reduce the features to what `hidden` reads, without parameters.

        With a frozen backbone, feature caches store the result, so it should be small.

        Args:
            features: tensors of the site's shapes, with a batch of B.

        Returns:
            Tensors (B, …).
        """
        return features

    def state(self, *pooled: Tensor, previous_state: Tensor | None = None) -> Tensor:
        """Compute the state (B, …), if the branch `carries_state`.

        Args:
            pooled: output of `pool`.
            previous_state: state of the exit before; None at the first exit.
        """
        raise NotImplementedError(f"{type(self).__name__} carries no state.")

    def hidden_inputs(
        self, pooled: Sequence[Tensor], previous_state: Tensor | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Compute what `hidden` reads, and the state for the next exit.

        Args:
            pooled: output of `pool`.
            previous_state: as for `state`.

        Returns:
            `pooled` and None, or the state twice if the branch `carries_state`.
        """
        if not self.carries_state:
            return pooled, None
        state = self.state(*pooled, previous_state=previous_state)
        return (state,), state

    @abstractmethod
    def hidden(self, *pooled: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        """Compute the hidden tensor (B, n), from which gate inputs and class logits are read.

        Args:
            pooled: output of `pool`; the state, if the branch `carries_state`.
            previous_logits: `passed_logits` of earlier exits (B, position, m), if
                `reads_previous_logits`.
        """

    def gate_inputs(self, hidden: Tensor, previous_logits: Tensor | None = None) -> Tensor:
        """Compute the gate inputs (B, k), without parameters that the gates' objective trains.

        Args:
            hidden: (B, n).
            previous_logits: as for `hidden`.
        """
        del previous_logits
        return hidden

    @abstractmethod
    def gate_logit(self, gate_inputs: Tensor, alpha: Tensor | float | None = None) -> Tensor:
        """Compute the gate logits (B,), before the sigmoid.

        Args:
            gate_inputs: (B, k).
            alpha: cost weight, one number or one per sample (B,), for gates conditioned on it.
        """

    @abstractmethod
    def classify(self, hidden: Tensor) -> Tensor:
        """Compute class logits: (B, n) → (B, num_classes)."""

    def passed_logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits passed on to later exits: (B, n) → (B, num_classes)."""
        return self.classify(hidden)

    @abstractmethod
    def gate_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the gates' objective trains."""

    @abstractmethod
    def classifier_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the classifiers' objective trains."""

    def neck_parameters(self) -> list[nn.Parameter]:
        """Return the classifier parameters that are trained by SGD, as the backbone is."""
        return []

    def ensemble_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of ensembles, which are trained after the classifiers."""
        return []

    @abstractmethod
    def reset_gate(self, generator: torch.Generator, probability: float) -> None:
        """Reinitialise the gate so that it opens for about a share `probability` of the samples.

        Args:
            generator: random generator.
            probability: in (0, 1).
        """

    def fit_input_statistics(self, *pooled: Tensor) -> None:
        """Fit the standardisation of pooled features to training images; optional.

        Called before classifiers are trained; a branch that is fitted keeps its statistics.

        Args:
            pooled: output of `pool`, each (samples, …).
        """

    def fit_gate_statistics(self, gate_inputs: Tensor) -> None:
        """Fit the standardisation of gate inputs to training images; optional.

        Args:
            gate_inputs: (samples, k).
        """

    def begin_phase(self, group: str) -> None:
        """Prepare for a training phase of a parameter group; optional.

        Args:
            group: a `leenet_fx.methods.phases.Group`.
        """

    def accumulate_class_means(self, labels: Tensor, *pooled: Tensor) -> None:
        """Add a batch to the sums behind class means.

        Args:
            labels: class indices (B,).
            pooled: output of `pool`.

        Raises:
            InputError: the branch has no class means.
        """
        raise InputError(
            f"{type(self).__name__} has no class means: attach with branch_options={{'head': "
            "'means'}."
        )

    def finish_class_means(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Set the class means from the sums of all batches, if the branch has class means.

        Args:
            sum_over_processes: returns the sum of a tensor over all processes.

        Raises:
            InputError: a class has no image.
        """

    def forward(
        self, *features: Tensor, previous_exits: Sequence[tuple[Tensor, ...]] = ()
    ) -> tuple[Tensor, ...]:
        """Run all stages.

        Args:
            features: tensors of the site's shapes, with a batch of B.
            previous_exits: results of `forward` at all earlier exits, if the branch reads their
                logits or carries a state.

        Returns:
            Class logits (B, m), gate logits (B,), the logits passed on to later exits (B, m), and
            the state, if the branch carries one.
        """
        previous_logits = (
            torch.stack([outputs[2] for outputs in previous_exits], 1)
            if self.reads_previous_logits
            else None
        )
        previous_state = previous_exits[-1][3] if self.carries_state and previous_exits else None
        inputs, state = self.hidden_inputs(self.pool(*features), previous_state)
        hidden = self.hidden(*inputs, previous_logits=previous_logits)
        return (
            self.classify(hidden),
            self.gate_logit(self.gate_inputs(hidden, previous_logits)),
            self.passed_logits(hidden),
            *(() if state is None else (state,)),
        )


BranchFactory: TypeAlias = Callable[..., Branch]
"""(site, **options) → branch."""

_branches: Registry[BranchFactory] = Registry("branch", "leenet_fx.branches")
register_branch = _branches.register
list_branches = _branches.names
get_branch = _branches.get


def make_branch(factory: BranchFactory, site: ExitSite, options: Mapping[str, Any]) -> Branch:
    """Call a branch factory after checking the names of its options.

    Args:
        factory: a registered branch, or any factory.
        site: features and position.
        options: keyword options for the factory.

    Raises:
        UnknownNameError: the factory has no such option.
        InputError: the value of an option does not fit.
    """
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in options:
            if name not in parameters:
                raise unknown_name("branch option", name, list(parameters)[1:])
    return factory(site, **options)


class BranchOutputs(NamedTuple):
    """Outputs of a branch's first stages.

    Attributes:
        hidden: (B, n).
        previous_logits: logits that earlier exits pass on (B, position, m), if the branch reads
            them.
        gate_inputs: (B, k).
    """

    hidden: Tensor
    previous_logits: Tensor | None
    gate_inputs: Tensor


def run_branches(
    branches: Iterable[Branch], pooled: Iterable[Sequence[Tensor]]
) -> list[BranchOutputs]:
    """Compute hidden tensors and gate inputs of all exits, for samples that pass all of them.

    Args:
        branches: in order of depth.
        pooled: output of `pool` for each branch.
    """
    passed_logits: list[Tensor] = []
    state: Tensor | None = None
    outputs = []
    for branch, tensors in zip(branches, pooled, strict=True):
        previous_logits = torch.stack(passed_logits, 1) if branch.reads_previous_logits else None
        inputs, state = branch.hidden_inputs(tensors, state)
        hidden = branch.hidden(*inputs, previous_logits=previous_logits)
        passed_logits.append(branch.passed_logits(hidden))
        gate_inputs = branch.gate_inputs(hidden, previous_logits)
        outputs.append(BranchOutputs(hidden, previous_logits, gate_inputs))
    return outputs
