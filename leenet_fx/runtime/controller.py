"""Exit controllers: which samples exit at an exit, and their class logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leenet_fx.parts.branches import Branch
from leenet_fx.policies import Policy, computed_states, evaluated_exits
from leenet_fx.runtime.active_batch import ActiveBatch, append_logits, take
from leenet_fx.runtime.fused_stage import DecisionSpec
from leenet_fx.runtime.stage_plan import StagePlan


class ExitController(ABC):
    """Runs stages, and decides which samples exit.

    Attributes:
        network: the module whose weights are read.
        stage_plan: its stages.
        branches: N, one behind each stage but the last.
        evaluated: N, whether each branch is evaluated.
        passes_logits: whether any branch that is evaluated reads the logits of earlier exits.
        carries_state: whether branches carry a state.
        computes_state: N, whether the state of each exit is computed.
        passes_state: N, whether the next exit reads it.
    """

    def __init__(
        self,
        network: nn.Module,
        stage_plan: StagePlan,
        branches: Sequence[Branch],
        evaluated: Sequence[bool],
    ) -> None:
        self.network = network
        self.stage_plan = stage_plan
        self.branches = branches
        self.evaluated = tuple(evaluated)
        self.passes_logits = any(
            branch.reads_previous_logits
            for branch, used in zip(branches, evaluated, strict=True)
            if used
        )
        self.carries_state = any(branch.carries_state for branch in branches)
        computed = computed_states(self.evaluated)
        self.computes_state = computed if self.carries_state else (False,) * len(computed)
        self.passes_state = (*self.computes_state[1:], False)

    def run(self, index: int, active: ActiveBatch) -> Tensor | None:
        """Run a stage, and decide at the exit behind it if it is evaluated.

        Args:
            index: index of stage and exit.
            active: the remaining samples; its values become those at the cut behind the stage.

        Returns:
            (B,) bool or integers 0 and 1: which samples exit; None if the exit is not evaluated.
        """
        if self.evaluated[index]:
            return self.decide(index, active)
        if self.computes_state[index]:
            self.pass_on(index, active)
            return None
        active.live = self.stage_plan.runs[index](self.network, *active.live)
        return None

    @abstractmethod
    def pass_on(self, index: int, active: ActiveBatch) -> None:
        """Run a stage and compute the state of the exit behind it, without its decision.

        Args:
            index: index of stage and exit.
            active: the remaining samples; its values become those at the cut behind the stage.
        """

    @abstractmethod
    def decide(self, index: int, active: ActiveBatch) -> Tensor:
        """Run a stage, and decide at the exit behind it.

        Args:
            index: index of stage and exit.
            active: the remaining samples; its values become those at the cut behind the stage.

        Returns:
            (B,) bool or integers 0 and 1: which samples exit.
        """

    @abstractmethod
    def classify(self, index: int, active: ActiveBatch, indices: Tensor | None) -> Tensor:
        """Compute the class logits of exiting samples.

        Args:
            index: index of the exit that decided last.
            active: the samples that it decided on.
            indices: (n,) positions of the exiting samples; None for all.

        Returns:
            (n, classes).
        """


class PolicyController(ExitController):
    """A policy decides from gate or class logits."""

    def __init__(
        self, network: nn.Module, stage_plan: StagePlan, branches: Sequence[Branch], policy: Policy
    ) -> None:
        evaluated = evaluated_exits(policy, [branch.reads_previous_logits for branch in branches])
        super().__init__(network, stage_plan, branches, evaluated)
        self.policy = policy
        self.by_gate = policy.reads_gates
        self.reads_history = policy.reads_history
        self.alpha = None if policy.alpha is None else torch.tensor(policy.alpha)
        has_alpha = self.alpha is not None
        specs = [
            DecisionSpec(self.by_gate, has_alpha, self.passes_logits, used or not passes_on)
            for used, passes_on in zip(evaluated, self.computes_state, strict=True)
        ]
        self.fused_stages = stage_plan.fused_stages(branches, specs)

    def pass_on(self, index: int, active: ActiveBatch) -> None:
        self._run_fused(index, active)

    def decide(self, index: int, active: ActiveBatch) -> Tensor:
        scores, passed_logits = self._run_fused(index, active)
        assert scores is not None
        if passed_logits is not None:
            active.previous_logits = append_logits(active.previous_logits, passed_logits)
        if self.reads_history:
            own = scores.unsqueeze(1) if self.by_gate else scores
            scores = active.logits_history = append_logits(active.logits_history, own)
        return self.policy.should_exit(index, scores)

    def _run_fused(self, index: int, active: ActiveBatch) -> tuple[Tensor | None, Tensor | None]:
        """Return what the policy reads, and the logits for later exits."""
        active.live, active.classifier_inputs, scores, passed_logits, state = self.fused_stages[
            index
        ](self.network, active.previous_logits, active.state, self.alpha, *active.live)
        active.state = state if self.passes_state[index] else None
        return scores, passed_logits

    def classify(self, index: int, active: ActiveBatch, indices: Tensor | None) -> Tensor:
        inputs: Tensor = take(active.classifier_inputs, indices)
        return self.branches[index].classify(inputs) if self.by_gate else inputs


class ForcedController(ExitController):
    """Each sample exits at a given exit; gates are not computed.

    Attributes:
        exit_index: (B,) the exit of each sample of the batch.
    """

    def __init__(
        self,
        network: nn.Module,
        stage_plan: StagePlan,
        branches: Sequence[Branch],
        exit_index: Tensor,
    ) -> None:
        super().__init__(network, stage_plan, branches, [True] * len(branches))
        self.exit_index = exit_index

    def pass_on(self, index: int, active: ActiveBatch) -> None:
        active.live = self.stage_plan.runs[index](self.network, *active.live)
        branch, features = self.branches[index], self.stage_plan.cuts[index].features
        if self.carries_state:
            pooled = branch.pool(*[active.live[i] for i in features])
            active.state = branch.state(*pooled, previous_state=active.state)

    def decide(self, index: int, active: ActiveBatch) -> Tensor:
        self.pass_on(index, active)
        if self.passes_logits:
            passed_logits = self.branches[index].passed_logits(self._hidden(index, active, None))
            active.previous_logits = append_logits(active.previous_logits, passed_logits)
        exit_index: Tensor = take(self.exit_index, active.indices)
        return exit_index == index

    def classify(self, index: int, active: ActiveBatch, indices: Tensor | None) -> Tensor:
        return self.branches[index].classify(self._hidden(index, active, indices))

    def _hidden(self, index: int, active: ActiveBatch, indices: Tensor | None) -> Tensor:
        branch, features = self.branches[index], self.stage_plan.cuts[index].features
        previous_logits = None
        if branch.reads_previous_logits and active.previous_logits is not None:
            previous_logits = take(active.previous_logits[:, :index], indices)
        inputs: Sequence[Tensor] = [take(active.state, indices)]
        if not self.carries_state:
            inputs = branch.pool(*[take(active.live[i], indices) for i in features])
        return branch.hidden(*inputs, previous_logits=previous_logits)
