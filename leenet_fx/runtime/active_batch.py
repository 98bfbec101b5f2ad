"""The remaining samples of a batch, and those that have exited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leenet_fx.graph.batch_dim import BatchDim, concat_samples, select_samples
from leenet_fx.runtime.stages import Cut

_SAMPLES = BatchDim("samples")


@dataclass(slots=True)
class ActiveBatch:
    """The remaining samples of a batch, and the outputs of the last exit for them.

    Attributes:
        live: the values at the last cut; the images before the first stage.
        count: number of remaining samples.
        indices: (count,) their indices in the batch; None for all samples in order.
        previous_logits: (count, i, classes) passed on by the exits so far; None if no exit reads
            them.
        logits_history: (count, i, classes) class logits of the exits so far, or (count, i, 1) their
            gate logits; None if the policy reads neither.
        state: (count, …) of the last exit; None if no later exit reads it.
        classifier_inputs: (count, k) the tensor from which the last exit's class logits are
            computed.
    """

    live: tuple[Any, ...]
    count: int
    indices: Tensor | None = None
    previous_logits: Tensor | None = None
    logits_history: Tensor | None = None
    state: Tensor | None = None
    classifier_inputs: Tensor | None = None

    def select(self, remaining: Tensor, cut: Cut) -> None:
        """Select samples, and drop the others.

        Args:
            remaining: (n,) positions of the samples to select.
            cut: the cut whose values are `live`.

        Raises:
            InputError: at this image size a value does not follow the batch.
        """
        self.live = tuple(
            select_samples(value, batch_dim, remaining, self.count)
            for value, batch_dim in zip(self.live, cut.batch_dims, strict=True)
        )
        self.indices = remaining if self.indices is None else take(self.indices, remaining)
        self.previous_logits = take(self.previous_logits, remaining)
        self.logits_history = take(self.logits_history, remaining)
        if self.state is not None:
            self.state = select_samples(self.state, _SAMPLES, remaining, self.count)
        self.classifier_inputs = None
        self.count = remaining.shape[0]


class ExitedSamples(NamedTuple):
    """Samples of a batch that exited at the same exit.

    Attributes:
        exit_index: the exit; N is the final classifier.
        indices: (n,) indices of the samples in the batch; None for the whole batch.
        logits: (n, classes).
    """

    exit_index: int
    indices: Tensor | None
    logits: Tensor


def take(values: Any, indices: Tensor | None) -> Any:
    """Return `values[indices]`; `values` unchanged if either is None."""
    return values if indices is None or values is None else values.index_select(0, indices)


def detach(value: Any) -> Any:
    """Return a value at a cut without its history of gradients; tuples and lists are entered."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)([detach(item) for item in value])
    return value


def append_logits(previous: Tensor | None, logits: Tensor) -> Tensor:
    """Append one exit's logits to those of the exits before.

    Args:
        previous: (B, index, classes); None at the first exit.
        logits: (B, classes).

    Returns:
        (B, index+1, classes); never a view, because compiled code is specialised on views.
    """
    if previous is None:
        return torch.stack([logits], 1)
    return torch.cat([previous, logits.unsqueeze(1)], 1)


def concatenate(groups: Sequence[ActiveBatch], cut: Cut) -> ActiveBatch:
    """Join samples that wait before the same stage into one batch, in order.

    Args:
        groups: one or more.
        cut: the cut whose values are their `live`.
    """
    if len(groups) == 1:
        return groups[0]

    def concatenated(name: str) -> Tensor | None:
        tensors = [getattr(group, name) for group in groups]
        return None if tensors[0] is None else torch.cat(tensors)

    values = zip(*(group.live for group in groups), strict=True)
    return ActiveBatch(
        live=tuple(
            concat_samples(parts, batch_dim)
            for parts, batch_dim in zip(values, cut.batch_dims, strict=True)
        ),
        count=sum(group.count for group in groups),
        indices=concatenated("indices"),
        previous_logits=concatenated("previous_logits"),
        logits_history=concatenated("logits_history"),
        state=concatenated("state"),
    )
