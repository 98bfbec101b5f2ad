"""The conditional runtime: stages between exits, run only for the samples still inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from leenet_fx.graph.batch_dim import Carried, check_rows, take_rows
from leenet_fx.parts.branches import Branch
from leenet_fx.policies.policy import Policy
from leenet_fx.runtime.fused_stage import Question, Segment, make_segment
from leenet_fx.runtime.stages import Cut, split

Wrap: TypeAlias = Callable[[Callable[..., Any], Sequence[Carried]], Callable[..., Any]]
"""(function, how its last arguments, the live values, follow the batch) → the function to run."""

_IMAGES = (Carried("rows"),)


class Pieces:
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
        self._segments: dict[tuple[Any, ...], tuple[Segment, ...]] = {}
        self._entering = (_IMAGES, *(cut.carried for cut in cuts))
        self.runs = tuple(
            self._wrapped(stage.run, how)
            for stage, how in zip(self.stages, self._entering, strict=True)
        )

    def segments(self, branches: Sequence[Branch], question: Question) -> tuple[Segment, ...]:
        """What a policy runs of the N stages that an exit stands behind.

        Args:
            branches: the exits.
            question: what is asked of them.
        """
        asked = (question, *branches)
        if asked not in self._segments:
            pairs = zip(self.stages, self.cuts, branches, self._entering, strict=False)
            self._segments[asked] = tuple(
                self._wrapped(make_segment(stage, cut, branch, index, question), how)
                for index, (stage, cut, branch, how) in enumerate(pairs)
            )
        return self._segments[asked]

    def _wrapped(
        self, function: Callable[..., Any], entering: Sequence[Carried]
    ) -> Callable[..., Any]:
        return function if self._wrap is None else self._wrap(function, entering)


@dataclass(slots=True)
class Inside:
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
    earlier: Tensor | None = None
    answered: Tensor | None = None
    kept: Tensor | None = None

    def keep(self, staying: Tensor, cut: Cut) -> None:
        """Lets all but `staying` (n,) go."""
        self.live = tuple(
            take_rows(value, how, staying, self.count)
            for value, how in zip(self.live, cut.carried, strict=True)
        )
        self.rows = staying if self.rows is None else _pick(self.rows, staying)
        self.earlier = _pick(self.earlier, staying)
        self.answered = _pick(self.answered, staying)
        self.kept = None
        self.count = staying.shape[0]


class Guide(ABC):
    """Says who leaves where.

    Attributes:
        network: whose weights are read.
        pieces: of the network.
        branches: what hangs behind each stage but the last.
        tells: whether any branch asks what earlier exits said.
    """

    def __init__(self, network: nn.Module, pieces: Pieces, branches: Sequence[Branch]) -> None:
        self.network = network
        self.pieces = pieces
        self.branches = branches
        self.tells = any(branch.reads_earlier for branch in branches)

    @abstractmethod
    def ask(self, index: int, inside: Inside) -> Tensor:
        """Takes the samples through the next stage and asks its exit.

        Args:
            index: of stage and exit.
            inside: who arrives; its values become those behind the stage.

        Returns:
            (B,) who leaves.
        """

    @abstractmethod
    def classify(self, index: int, inside: Inside, taken: Tensor | None) -> Tensor:
        """Class logits (n, m) of samples that leave.

        Args:
            index: of the exit that was asked last.
            inside: who arrived there.
            taken: (n,) which of them; None for all.
        """


class ByPolicy(Guide):
    """Each exit's gate or class logits decide."""

    def __init__(
        self, network: nn.Module, pieces: Pieces, branches: Sequence[Branch], policy: Policy
    ) -> None:
        super().__init__(network, pieces, branches)
        self.policy = policy
        self.by_gate = policy.reads == "gate"
        self.remembers = policy.reads == "history"
        self.alpha = None if policy.alpha is None else torch.tensor(policy.alpha)
        question = Question(self.by_gate, self.alpha is not None, self.tells)
        self.segments = pieces.segments(branches, question)

    def ask(self, index: int, inside: Inside) -> Tensor:
        inside.live, inside.kept, scores, said = self.segments[index](
            self.network, inside.earlier, self.alpha, *inside.live
        )
        if said is not None:
            inside.earlier = joined(inside.earlier, said)
        if self.remembers:
            scores = inside.answered = joined(inside.answered, scores)
        return self.policy.leaves(index, scores)

    def classify(self, index: int, inside: Inside, taken: Tensor | None) -> Tensor:
        kept: Tensor = _pick(inside.kept, taken)
        return self.branches[index].classify(kept) if self.by_gate else kept


class ByIndex(Guide):
    """Sample b leaves at `to[b]`; no gate is asked."""

    def __init__(
        self, network: nn.Module, pieces: Pieces, branches: Sequence[Branch], to: Tensor
    ) -> None:
        super().__init__(network, pieces, branches)
        self.to = to

    def ask(self, index: int, inside: Inside) -> Tensor:
        inside.live = self.pieces.runs[index](self.network, *inside.live)
        if self.tells:
            said = self.branches[index].said(self._state(index, inside, None))
            inside.earlier = joined(inside.earlier, said)
        leave: Tensor = _pick(self.to, inside.rows) == index
        return leave

    def classify(self, index: int, inside: Inside, taken: Tensor | None) -> Tensor:
        return self.branches[index].classify(self._state(index, inside, taken))

    def _state(self, index: int, inside: Inside, taken: Tensor | None) -> Tensor:
        branch, features = self.branches[index], self.pieces.cuts[index].features
        earlier = None
        if branch.reads_earlier and inside.earlier is not None:
            earlier = _pick(inside.earlier[:, :index], taken)
        reduced = branch.reduce(*[_pick(inside.live[i], taken) for i in features])
        return branch.embed(*reduced, earlier=earlier)


class Left(NamedTuple):
    """Samples that left together.

    Attributes:
        outlet: the exit; N is the final classifier.
        rows: (n,) which samples; None for the whole batch.
        logits: (n, m).
    """

    outlet: int
    rows: Tensor | None
    logits: Tensor


def run_plain(network: nn.Module, pieces: Pieces, images: Tensor) -> Tensor:
    """All stages for all samples, and no branch: logits (B, m).

    Args:
        network: whose weights are read.
        pieces: of the network.
        images: (B, …), B ≥ 1.
    """
    live: Any = (images,)
    for stage in pieces.runs[:-1]:
        live = stage(network, *live)
    logits: Tensor = pieces.runs[-1](network, *live)
    return logits


def run(guide: Guide, images: Tensor) -> list[Left]:
    """Runs each stage on the samples that are still inside.

    Args:
        guide: who leaves where.
        images: (B, …), B ≥ 1.

    Raises:
        InputError: at this image size a value does not follow the batch.
    """
    inside = Inside((images,), images.shape[0])
    left: list[Left] = []
    last = len(guide.pieces.cuts)
    for index in range(last):
        leaving = advance(guide, index, inside)
        if leaving is not None:
            left.append(leaving)
            if not inside.count:
                return left
    logits = guide.pieces.runs[-1](guide.network, *inside.live)
    left.append(Left(last, inside.rows, logits))
    return left


def advance(guide: Guide, index: int, inside: Inside) -> Left | None:
    """Takes the samples to the next exit, and lets go who leaves; the device is asked once.

    Returns:
        Who left; None for nobody.

    Raises:
        InputError: at this image size a value that the exit reads does not follow the batch.
    """
    leave = guide.ask(index, inside)
    count, cut = inside.count, guide.pieces.cuts[index]
    for at in cut.features:
        check_rows(inside.live[at], cut.carried[at], count)
    gone = int(leave) if count == 1 else int(leave.sum())
    if not gone:
        return None
    if gone == count:
        inside.count = 0
        return Left(index, inside.rows, guide.classify(index, inside, None))
    # Both lists without asking the device how long they are; bytes sort on every device.
    order = leave.byte().argsort(stable=True)
    staying, leaving = order[: count - gone], order[count - gone :]
    rows = leaving if inside.rows is None else _pick(inside.rows, leaving)
    logits = guide.classify(index, inside, leaving)
    inside.keep(staying, cut)
    return Left(index, rows, logits)


def in_order(left: Sequence[Left]) -> Tensor:
    """Logits (B, m) of all samples, in the order of the batch."""
    if len(left) == 1:
        return left[0].logits
    rows = torch.cat([group.rows for group in left if group.rows is not None])
    logits = torch.cat([group.logits for group in left])
    return torch.empty_like(logits).index_copy_(0, rows, logits)


def exits_taken(left: Sequence[Left]) -> Tensor:
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


def joined(earlier: Tensor | None, own: Tensor) -> Tensor:
    """(B, index, m) and (B, m) → (B, index+1, m).

    Never a view, for compiled code is bound to what a view is a view of.

    Args:
        earlier: of the exits before; None at the first.
        own: of this exit.
    """
    if earlier is None:
        return torch.stack([own], 1)
    return torch.cat([earlier, own.unsqueeze(1)], 1)
