"""The functions that conditional execution calls, one per stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from torch import fx

from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.parts.branches import Branch
from leenet_fx.runtime.fused_stage import DecisionSpec, FusedStage
from leenet_fx.runtime.stages import Cut, split

StageWrapper: TypeAlias = Callable[[Callable[..., Any], Sequence[BatchDim]], Callable[..., Any]]
"""(function, batch dimensions of its last arguments, the live values) → the function to call."""

_IMAGES = (BatchDim("samples"),)


class StagePlan:
    """The stages of a network, and their fusions with the exits.

    Attributes:
        stages: N+1.
        cuts: N, one behind each stage but the last.
        runs: N+1 functions `(network, *live)`, one per stage.
    """

    def __init__(
        self, graph: fx.Graph, cuts: Sequence[Cut], wrapper: StageWrapper | None = None
    ) -> None:
        """Split a graph.

        Args:
            graph: the graph that computes every exit.
            cuts: N, one per exit.
            wrapper: returns the function to call for a generated one; None calls that itself.
        """
        self.stages = split(graph, cuts)
        self.cuts = tuple(cuts)
        self._wrapper = wrapper
        self._fused: dict[tuple[Any, ...], tuple[FusedStage, ...]] = {}
        self._inputs = (_IMAGES, *(cut.batch_dims for cut in cuts))
        self.runs = tuple(
            self._wrap(inputs, stage.run)
            for stage, inputs in zip(self.stages, self._inputs, strict=True)
        )

    def fused_stages(
        self, branches: Sequence[Branch], specs: Sequence[DecisionSpec]
    ) -> tuple[FusedStage, ...]:
        """Return stages 0 to N−1, each with the part of the exit behind it that runs.

        Args:
            branches: N, in order.
            specs: N, what the policy reads of each.
        """
        key = (*specs, *branches)
        if key not in self._fused:
            self._fused[key] = tuple(
                FusedStage(
                    self.stages[index],
                    self.runs[index],
                    self.cuts[index],
                    branch,
                    index,
                    specs[index],
                    partial(self._wrap, self._inputs[index]),
                )
                for index, branch in enumerate(branches)
            )
        return self._fused[key]

    def _wrap(self, inputs: Sequence[BatchDim], function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._wrapper is None else self._wrapper(function, inputs)
