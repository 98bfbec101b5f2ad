"""The conditional runtime: stages between exits, run only for the samples still inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from leenet_fx.graph.batch_dim import BatchDim, check_samples, select_samples
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import Policy
from leenet_fx.runtime.fused_stage import DecisionSpec, FusedStage, make_fused_stage
from leenet_fx.runtime.stages import Cut, split

Wrap: TypeAlias = Callable[[Callable[..., Any], Sequence[BatchDim]], Callable[..., Any]]
"""(function, how its last arguments, the live values, follow the batch) → the function to run."""

_IMAGES = (BatchDim("samples"),)


class StagePlan:
    """The stages of a network, and the segments that policies run.

    Attributes:
        stages: N+1.
        cuts: N, what crosses behind each stage but the last.
        runs: N+1 functions `(network, *live)` of the stages, to run.
    """

    def __init__(self, graph: fx.Graph, cuts: Sequence[Cut], wrap: Wrap | None = None) -> None:
        self.stages = split(graph, cuts)
        self.cuts = tuple(cuts)
        self._wrap = wrap
        self._segments: dict[tuple[Any, ...], tuple[FusedStage, ...]] = {}
        self._entering = (_IMAGES, *(cut.batch_dims for cut in cuts))
        self.runs = tuple(
            self._wrapped(stage.run, how)
            for stage, how in zip(self.stages, self._entering, strict=True)
        )

    def fused_stages(
        self, branches: Sequence[Branch], question: DecisionSpec
    ) -> tuple[FusedStage, ...]:
        """What a policy runs of the N stages that an exit stands behind.

        Args:
            branches: the exits.
            question: what is asked of them.
        """
        asked = (question, *branches)
        if asked not in self._segments:
            pairs = zip(self.stages, self.cuts, branches, self._entering, strict=False)
            self._segments[asked] = tuple(
                self._wrapped(make_fused_stage(stage, cut, branch, index, question), how)
                for index, (stage, cut, branch, how) in enumerate(pairs)
            )
        return self._segments[asked]

    def _wrapped(
        self, function: Callable[..., Any], entering: Sequence[BatchDim]
    ) -> Callable[..., Any]:
        return function if self._wrap is None else self._wrap(function, entering)


@dataclass(slots=True)
class ActiveBatch:
    """The samples that have not left, and what the last exit found of them.

    Attributes:
        live: the values that crossed the last cut.
        count: how many they are.
        rows: (count,) which samples of the batch these are; None for all.
        earlier: (count, i, m) what exits said; None where nobody asks.
        answered: (count, i, m) their class logits, which may differ; None where nobody asks.
        kept: (count, k) what the last exit classifies from.
    """

    live: tuple[Any, ...]
    count: int
    rows: Tensor | None = None
    previous_logits: Tensor | None = None
    answered: Tensor | None = None
    kept: Tensor | None = None

    def keep(self, staying: Tensor, cut: Cut) -> None:
        """Lets all but `staying` (n,) go."""
        self.live = tuple(
            select_samples(value, how, staying, self.count)
            for value, how in zip(self.live, cut.batch_dims, strict=True)
        )
        self.rows = staying if self.rows is None else _pick(self.rows, staying)
        self.previous_logits = _pick(self.previous_logits, staying)
        self.answered = _pick(self.answered, staying)
        self.kept = None
        self.count = staying.shape[0]


class ExitController(ABC):
    """Says who leaves where.

    Attributes:
        network: whose weights are read.
        pieces: of the network.
        branches: what hangs behind each stage but the last.
        tells: whether any branch asks what earlier exits said.
    """

    def __init__(
        self, network: nn.Module, stage_plan: StagePlan, branches: Sequence[Branch]
    ) -> None:
        self.network = network
        self.stage_plan = stage_plan
        self.branches = branches
        self.tells = any(branch.reads_previous_logits for branch in branches)

    @abstractmethod
    def ask(self, index: int, active: ActiveBatch) -> Tensor:
        """Takes the samples through the next stage and asks its exit.

        Args:
            index: of stage and exit.
            inside: who arrives; its values become those behind the stage.

        Returns:
            (B,) who leaves.
        """

    @abstractmethod
    def classify(self, index: int, active: ActiveBatch, taken: Tensor | None) -> Tensor:
        """Class logits (n, m) of samples that leave.

        Args:
            index: of the exit that was asked last.
            inside: who arrived there.
            taken: (n,) which of them; None for all.
        """


class PolicyController(ExitController):
    """Each exit's gate or class logits decide."""

    def __init__(
        self, network: nn.Module, stage_plan: StagePlan, branches: Sequence[Branch], policy: Policy
    ) -> None:
        super().__init__(network, stage_plan, branches)
        self.policy = policy
        self.by_gate = policy.reads == "gate"
        self.remembers = policy.reads == "history"
        self.alpha = None if policy.alpha is None else torch.tensor(policy.alpha)
        question = DecisionSpec(self.by_gate, self.alpha is not None, self.tells)
        self.fused_stages = stage_plan.fused_stages(branches, question)

    def ask(self, index: int, active: ActiveBatch) -> Tensor:
        active.live, active.kept, scores, passed_logits = self.fused_stages[index](
            self.network, active.previous_logits, self.alpha, *active.live
        )
        if passed_logits is not None:
            active.previous_logits = joined(active.previous_logits, passed_logits)
        if self.remembers:
            scores = active.answered = joined(active.answered, scores)
        return self.policy.should_exit(index, scores)

    def classify(self, index: int, active: ActiveBatch, taken: Tensor | None) -> Tensor:
        kept: Tensor = _pick(active.kept, taken)
        return self.branches[index].classify(kept) if self.by_gate else kept


class ForcedController(ExitController):
    """Sample b leaves at `to[b]`; no gate is asked."""

    def __init__(
        self, network: nn.Module, stage_plan: StagePlan, branches: Sequence[Branch], to: Tensor
    ) -> None:
        super().__init__(network, stage_plan, branches)
        self.to = to

    def ask(self, index: int, active: ActiveBatch) -> Tensor:
        active.live = self.stage_plan.runs[index](self.network, *active.live)
        if self.tells:
            passed_logits = self.branches[index].passed_logits(self._state(index, active, None))
            active.previous_logits = joined(active.previous_logits, passed_logits)
        leave: Tensor = _pick(self.to, active.rows) == index
        return leave

    def classify(self, index: int, active: ActiveBatch, taken: Tensor | None) -> Tensor:
        return self.branches[index].classify(self._state(index, active, taken))

    def _state(self, index: int, active: ActiveBatch, taken: Tensor | None) -> Tensor:
        branch, features = self.branches[index], self.stage_plan.cuts[index].features
        previous_logits = None
        if branch.reads_previous_logits and active.previous_logits is not None:
            previous_logits = _pick(active.previous_logits[:, :index], taken)
        pooled = branch.pool(*[_pick(active.live[i], taken) for i in features])
        return branch.hidden(*pooled, previous_logits=previous_logits)


class ExitedSamples(NamedTuple):
    """Samples that left together.

    Attributes:
        outlet: the exit; N is the final classifier.
        rows: (n,) which samples; None for the whole batch.
        logits: (n, m).
    """

    outlet: int
    rows: Tensor | None
    logits: Tensor


def run_backbone(network: nn.Module, stage_plan: StagePlan, images: Tensor) -> Tensor:
    """All stages for all samples, and no branch: logits (B, m).

    Args:
        network: whose weights are read.
        pieces: of the network.
        images: (B, …), B ≥ 1.
    """
    live: Any = (images,)
    for stage in stage_plan.runs[:-1]:
        live = stage(network, *live)
    logits: Tensor = stage_plan.runs[-1](network, *live)
    return logits


def run(controller: ExitController, images: Tensor) -> list[ExitedSamples]:
    """Runs each stage on the samples that are still inside.

    Args:
        guide: who leaves where.
        images: (B, …), B ≥ 1.

    Raises:
        InputError: at this image size a value does not follow the batch.
    """
    active = ActiveBatch((images,), images.shape[0])
    left: list[ExitedSamples] = []
    last = len(controller.stage_plan.cuts)
    for index in range(last):
        leaving = run_stage(controller, index, active)
        if leaving is not None:
            left.append(leaving)
            if not active.count:
                return left
    logits = controller.stage_plan.runs[-1](controller.network, *active.live)
    left.append(ExitedSamples(last, active.rows, logits))
    return left


def run_stage(controller: ExitController, index: int, active: ActiveBatch) -> ExitedSamples | None:
    """Takes the samples to the next exit, and lets go who leaves; the device is asked once.

    Returns:
        Who left; None for nobody.

    Raises:
        InputError: at this image size a value that the exit reads does not follow the batch.
    """
    leave = controller.ask(index, active)
    count, cut = active.count, controller.stage_plan.cuts[index]
    for at in cut.features:
        check_samples(active.live[at], cut.batch_dims[at], count)
    gone = int(leave) if count == 1 else int(leave.sum())
    if not gone:
        return None
    if gone == count:
        active.count = 0
        return ExitedSamples(index, active.rows, controller.classify(index, active, None))
    # Both lists without asking the device how long they are; bytes sort on every device.
    order = leave.byte().argsort(stable=True)
    staying, leaving = order[: count - gone], order[count - gone :]
    rows = leaving if active.rows is None else _pick(active.rows, leaving)
    logits = controller.classify(index, active, leaving)
    active.keep(staying, cut)
    return ExitedSamples(index, rows, logits)


def in_order(left: Sequence[ExitedSamples]) -> Tensor:
    """Logits (B, m) of all samples, in the order of the batch."""
    if len(left) == 1:
        return left[0].logits
    rows = torch.cat([group.rows for group in left if group.rows is not None])
    logits = torch.cat([group.logits for group in left])
    return torch.empty_like(logits).index_copy_(0, rows, logits)


def exit_indices_of(left: Sequence[ExitedSamples]) -> Tensor:
    """Where each sample left (B,), in the order of the batch."""
    size = sum(len(group.logits) for group in left)
    device = left[0].logits.device
    index = torch.full((size,), left[0].outlet, dtype=torch.int64, device=device)
    for group in left[1:]:
        assert group.rows is not None
        index[group.rows] = group.outlet
    return index


def _pick(values: Any, taken: Tensor | None) -> Any:
    """`values[taken]`; all of `values` where there is nothing to take, or nothing to take from."""
    return values if taken is None or values is None else values.index_select(0, taken)


def joined(previous_logits: Tensor | None, own: Tensor) -> Tensor:
    """(B, index, m) and (B, m) → (B, index+1, m).

    Never a view, for compiled code is bound to what a view is a view of.

    Args:
        earlier: of the exits before; None at the first.
        own: of this exit.
    """
    if previous_logits is None:
        return torch.stack([own], 1)
    return torch.cat([previous_logits, own.unsqueeze(1)], 1)
