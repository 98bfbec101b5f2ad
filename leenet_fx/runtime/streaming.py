"""Prediction of a stream of batches whose remaining samples are re-batched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError, ModeError
from leenet_fx.runtime.active_batch import ActiveBatch, concatenate
from leenet_fx.runtime.conditional import run_any_stage
from leenet_fx.runtime.controller import ExitController
from leenet_fx.runtime.network import NetworkWithExits
from leenet_fx.runtime.outputs import Prediction


def predict_stream(
    ee: NetworkWithExits,
    loader: Iterable[Any],
    *,
    batch_size: int | None = None,
    max_delay: int = 8,
) -> Iterator[Prediction]:
    """Predict a stream of batches; the remaining samples of several batches run together.

    If half of a batch exits at every exit, its last stages run on few samples. Here samples wait
    before a stage until `batch_size` of them are there, or until a batch has waited too long.
    Logits and exits are those of `ee.predict` up to rounding.

    Args:
        ee: the network (`EarlyExitModule`), in evaluation mode.
        loader: yields images (B, …), or tuples that begin with images.
        batch_size: number of samples that a stage waits for; None takes the first batch's size.
        max_delay: number of later batches that may be read before the prediction of a batch; 0
            predicts each batch at once.

    Yields:
        One `Prediction` per batch, in the order of the batches.

    Raises:
        ModeError: `ee` is in training mode.
        InputError: images that do not fit, or a `batch_size` or `max_delay` out of range.
    """
    if ee.training:
        raise ModeError("predict_stream needs evaluation mode: call ee.eval() first.")
    for name, value, least in (("batch_size", batch_size, 1), ("max_delay", max_delay, 0)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
            raise InputError(f"{name} must be a whole number from {least}, got {value!r}.")
    return _stream(ee, loader, batch_size, max_delay)


def _stream(
    ee: NetworkWithExits, loader: Iterable[Any], batch_size: int | None, max_delay: int
) -> Iterator[Prediction]:
    device, policy = ee.device, ee.policy
    if policy.reads == "nothing":
        for images in _images(loader, device):
            yield ee.predict(images)
        return
    queues: _Queues | None = None
    for images in _images(loader, device):
        if queues is None:
            queues = _Queues(ee, ee.controller(policy), batch_size or max(1, len(images)))
        ee.check_images(images)
        with torch.inference_mode():
            queues.add(images)
            queues.run_full()
            while queues.is_overdue(max_delay):
                queues.finish_oldest()
            finished = queues.pop_finished()
        yield from finished
    if queues is not None:
        with torch.inference_mode():
            while queues.is_overdue(0):
                queues.finish_oldest()
            finished = queues.pop_finished()
        yield from finished


def _images(loader: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    for batch in loader:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor):
            raise InputError(f"The loader must yield images, got {type(images).__name__}.")
        yield images.to(device, non_blocking=True)


@dataclass
class _Batch:
    """A batch of the stream.

    Attributes:
        first: index, in the stream, of its first sample.
        count: number of its samples.
        exited: number of those that have exited.
        logits: (count, classes), filled for exited samples; empty before the first.
        exit_index: (count,), filled for exited samples.
    """

    first: int
    count: int
    exited: int
    logits: Tensor
    exit_index: Tensor

    def contains(self, indices: Tensor) -> Tensor:
        """Return a mask of the samples (n,), by index in the stream, that are of this batch."""
        return (indices >= self.first) & (indices < self.first + self.count)


class _Queues:
    """Samples that wait before each stage; `ActiveBatch.indices` are indices in the stream."""

    def __init__(self, ee: NetworkWithExits, controller: ExitController, batch_size: int) -> None:
        self.ee = ee
        self.controller = controller
        self.batch_size = batch_size
        self.waiting: list[list[ActiveBatch]] = [[] for _ in range(ee.num_exits + 1)]
        self.batches: deque[_Batch] = deque()
        self.num_samples = 0

    def add(self, images: Tensor) -> None:
        """Add a batch, and run the first stage on it."""
        count, device = len(images), images.device
        logits = images.new_empty(0, self.ee.spec.num_classes)
        exit_index = torch.empty(count, dtype=torch.int64, device=device)
        self.batches.append(_Batch(self.num_samples, count, 0, logits, exit_index))
        if count:
            indices = torch.arange(self.num_samples, self.num_samples + count, device=device)
            self._run(0, ActiveBatch((images,), count, indices))
        self.num_samples += count

    def run_full(self) -> None:
        """Run every stage before which `batch_size` samples wait."""
        for stage in range(1, len(self.waiting)):
            if sum(group.count for group in self.waiting[stage]) >= self.batch_size:
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
        batch = self.batches[oldest]
        for stage in range(1, len(self.waiting)):
            waiting = [group.indices for group in self.waiting[stage] if group.indices is not None]
            if any(bool(batch.contains(indices).any()) for indices in waiting):
                self._run_waiting(stage)

    def pop_finished(self) -> list[Prediction]:
        """Remove the finished batches at the start of the queue, and return their predictions."""
        predictions = []
        while self.batches and self.batches[0].exited == self.batches[0].count:
            batch = self.batches.popleft()
            predictions.append(
                self.ee.prediction(batch.logits, batch.exit_index, early_exits_disabled=False)
            )
        return predictions

    def _oldest(self) -> int | None:
        """Position of the oldest unfinished batch."""
        unfinished = (i for i, batch in enumerate(self.batches) if batch.exited < batch.count)
        return next(unfinished, None)

    def _run_waiting(self, stage: int) -> None:
        groups, self.waiting[stage] = self.waiting[stage], []
        self._run(stage, concatenate(groups, self.controller.stage_plan.cuts[stage - 1]))

    def _run(self, stage: int, active: ActiveBatch) -> None:
        group = run_any_stage(self.controller, stage, active)
        if group is not None:
            assert group.indices is not None
            self._record(stage, group.indices, group.logits)
        if active.count:
            self.waiting[stage + 1].append(active)

    def _record(self, exit_index: int, indices: Tensor, logits: Tensor) -> None:
        """Write the logits (n, classes) of exited samples to their batches."""
        for batch in self.batches:
            mask = batch.contains(indices)
            positions = indices[mask] - batch.first
            if not len(positions):
                continue
            if not len(batch.logits):
                batch.logits = logits.new_empty(batch.count, logits.shape[1])
            batch.logits[positions] = logits[mask]
            batch.exit_index[positions] = exit_index
            batch.exited += len(positions)
