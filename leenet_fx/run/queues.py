"""Stage by stage execution: samples that wait before each stage run together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Prediction(NamedTuple):
    """Outputs for a batch.

    Attributes:
        logits: (B, classes).
        exit_index: (B,) exit of each sample; N is the final classifier.
        confidence: (B,) largest class probability.
    """

    logits: NDArray[np.float32]
    exit_index: NDArray[np.int64]
    confidence: NDArray[np.float32]


class Setting(NamedTuple):
    """Thresholds (N,) or None without early exits; their sign; α or None; temperatures or None."""

    thresholds: NDArray[np.float32] | None
    sign: int
    alpha: NDArray[np.float32] | None
    temperatures: NDArray[np.float32] | None = None


@dataclass
class Group:
    """Samples that wait before a stage: their tensors, and their indices in the stream."""

    tensors: list[Any]
    indices: NDArray[np.int64]


@dataclass
class _Batch:
    """A batch of the stream: index of its first sample, results, and how many have exited."""

    first: int
    logits: NDArray[np.float32]
    exit_index: NDArray[np.int64]
    exited: int = 0

    @property
    def count(self) -> int:
        return len(self.exit_index)

    def contains(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        return (indices >= self.first) & (indices < self.first + self.count)


class Queues:
    """Samples that wait before each stage."""

    def __init__(
        self,
        stages: Sequence[Any],
        sessions: Sequence[Any],
        num_exits: int,
        num_classes: int,
        setting: Setting,
        batch_size: int,
    ) -> None:
        """Prepare for a stream.

        Args:
            stages: their descriptions.
            sessions: of ONNX Runtime, one for each stage.
            num_exits: N, the index of the final classifier; without early exits there is one stage.
            num_classes: width of the logits.
            setting: thresholds and α.
            batch_size: number of samples that a stage waits for.
        """
        self.stages = stages
        self.sessions = sessions
        self.num_exits = num_exits
        self.num_classes = num_classes
        self.setting = setting
        self.batch_size = batch_size
        self.waiting: list[list[Group]] = [[] for _ in self.stages]
        self.batches: deque[_Batch] = deque()
        self.num_samples = 0

    def add(self, images: NDArray[np.float32]) -> None:
        """Add a batch, and run the first stage on it."""
        count = len(images)
        logits = np.empty((count, self.num_classes), np.float32)
        self.batches.append(_Batch(self.num_samples, logits, np.empty(count, np.int64)))
        if count:
            indices = np.arange(self.num_samples, self.num_samples + count)
            self._run(0, Group([np.ascontiguousarray(images)], indices))
        self.num_samples += count

    def run_full(self) -> None:
        """Run every stage before which `batch_size` samples wait."""
        for stage in range(1, len(self.stages)):
            if sum(len(group.indices) for group in self.waiting[stage]) >= self.batch_size:
                self._run_waiting(stage)

    def is_overdue(self, max_delay: int) -> bool:
        """Return whether `max_delay` batches were added after the oldest unfinished one."""
        oldest = self._oldest()
        return oldest is not None and len(self.batches) - 1 - oldest >= max_delay

    def finish_oldest(self) -> None:
        """Run the oldest unfinished batch to the end, with all samples that wait where its do."""
        oldest = self._oldest()
        if oldest is None:
            return
        for stage in range(1, len(self.stages)):
            groups = self.waiting[stage]
            if any(self.batches[oldest].contains(group.indices).any() for group in groups):
                self._run_waiting(stage)

    def pop_finished(self) -> list[Prediction]:
        """Remove the finished batches at the start, and return their predictions."""
        finished = []
        while self.batches and self.batches[0].exited == self.batches[0].count:
            batch = self.batches.popleft()
            finished.append(self._prediction(batch))
        return finished

    def _prediction(self, batch: _Batch) -> Prediction:
        return prediction_of(batch.logits, batch.exit_index, self.setting.temperatures)

    def _oldest(self) -> int | None:
        unfinished = (i for i, batch in enumerate(self.batches) if batch.exited < batch.count)
        return next(unfinished, None)

    def _run_waiting(self, stage: int) -> None:
        groups, self.waiting[stage] = self.waiting[stage], []
        self._run(stage, join(self.stages[stage], groups))

    def _run(self, index: int, group: Group) -> None:
        is_last = index == len(self.stages) - 1
        exited, logits, remaining = run_stage(
            self.stages[index],
            self.sessions[index],
            self.setting,
            group,
            None if is_last else index,
        )
        if len(exited):
            self._record(self.num_exits if is_last else index, exited, logits)
        if remaining is not None:
            self.waiting[index + 1].append(remaining)

    def _record(self, exit_index: int, indices: NDArray[np.int64], logits: Any) -> None:
        for batch in self.batches:
            mask = batch.contains(indices)
            positions = indices[mask] - batch.first
            batch.logits[positions] = logits[mask]
            batch.exit_index[positions] = exit_index
            batch.exited += len(positions)


def join(stage: Mapping[str, Any], groups: Sequence[Group]) -> Group:
    """Join samples that wait before the same stage into one group, in order.

    Args:
        stage: its description.
        groups: one or more.
    """
    tensors = [
        parts[0] if axis is None or len(parts) == 1 else np.concatenate(parts, axis)
        for parts, axis in zip(
            zip(*(group.tensors for group in groups), strict=True),
            (spec["batch_axis"] for spec in stage["inputs"]),
            strict=False,
        )
    ]
    return Group(tensors, np.concatenate([group.indices for group in groups]))


def select(axes: Sequence[int | None], group: Group, positions: NDArray[np.int64]) -> Group:
    """Return some of the samples of a group.

    Args:
        axes: of the samples, for each tensor; None for a tensor without samples.
        group: the samples.
        positions: (n,) of those to select.
    """
    tensors = [
        tensor if axis is None else np.take(tensor, positions, axis)
        for tensor, axis in zip(group.tensors, axes, strict=True)
    ]
    return Group(tensors, group.indices[positions])


def run_stage(
    stage: Mapping[str, Any], session: Any, setting: Setting, group: Group, exit_index: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], Group | None]:
    """Run a stage on samples.

    Args:
        stage: its description.
        session: of the runtime.
        setting: thresholds and α.
        group: the samples.
        exit_index: index of the exit behind the stage; None at the last stage.

    Returns:
        Indices (n,) in the stream and logits (n, classes) of the samples that exit, and the
        remaining samples, None if there are none.
    """
    names = [spec["name"] for spec in stage["inputs"]]
    alpha = [] if setting.alpha is None else [setting.alpha]
    outputs = session.run(None, dict(zip(names, [*group.tensors, *alpha], strict=False)))
    if exit_index is None:
        return group.indices, outputs[0], None
    logits, confidence, *tensors = outputs
    assert setting.thresholds is not None
    exits = confidence >= setting.sign * setting.thresholds[exit_index]
    remaining = Group(tensors, group.indices)
    if exits.any():
        axes = [spec["batch_axis"] for spec in stage["outputs"][2:]]
        remaining = select(axes, remaining, np.flatnonzero(~exits))
    rest = remaining if len(remaining.indices) else None
    return group.indices[exits], logits[exits], rest


def prediction_of(
    logits: NDArray[np.float32],
    exit_index: NDArray[np.int64],
    temperatures: NDArray[np.float32] | None = None,
) -> Prediction:
    """Return a prediction from logits (B, classes), exits (B,), and temperatures (N+1,)."""
    divided = logits if temperatures is None else logits / temperatures[exit_index, None]
    exponentials = np.exp(divided - divided.max(1, keepdims=True)) if len(logits) else logits
    confidence = 1 / exponentials.sum(1) if len(logits) else np.empty(0, np.float32)
    return Prediction(logits, exit_index, confidence.astype(np.float32))
