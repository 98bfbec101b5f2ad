"""Batches kept full: survivors of several batches run the later stages together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError, ModeError
from leenet_fx.graph.batch_dim import concat_samples
from leenet_fx.runtime.conditional import ActiveBatch, ExitController, run_stage
from leenet_fx.runtime.stages import Cut
from leenet_fx.surgery.module import EarlyExitModule, Prediction, device_of


def predict_stream(
    ee: EarlyExitModule,
    loader: Iterable[Any],
    *,
    batch_size: int | None = None,
    max_delay: int = 8,
) -> Iterator[Prediction]:
    """As `ee.predict` of each batch, with survivors of several batches taken on together.

    Where half of a batch leaves at every exit, its last stages run on a handful of samples. Here
    samples wait in front of a stage until `batch_size` of them are there, or until one has waited
    too long. Who leaves where, and with what logits, is the same but for rounding.

    Args:
        ee: the network, in evaluation mode.
        loader: yields images (B, …), or tuples that begin with them.
        batch_size: how many samples a stage waits for; None takes the first batch's size.
        max_delay: how many batches more may be read before a batch's answer is given; 0 waits for
            none.

    Yields:
        One `Prediction` for each batch, in the order of the batches.

    Raises:
        ModeError: `ee` is in training mode.
        InputError: images that do not fit, a batch size or delay that is none.
    """
    if ee.training:
        raise ModeError("predict_stream needs evaluation mode: call ee.eval() first.")
    for name, value, least in (("batch_size", batch_size, 1), ("max_delay", max_delay, 0)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
            raise InputError(f"{name} must be a whole number from {least}, got {value!r}.")
    return _stream(ee, loader, batch_size, max_delay)


def _stream(
    ee: EarlyExitModule, loader: Iterable[Any], batch_size: int | None, max_delay: int
) -> Iterator[Prediction]:
    device, policy = device_of(ee), ee.policy
    if policy.reads == "nothing":
        for images in _images(loader, device):
            yield ee.predict(images)
        return
    pools: _Pools | None = None
    for images in _images(loader, device):
        if pools is None:
            pools = _Pools(ee, ee.controller(policy), batch_size or max(1, len(images)))
        ee.check_images(images)
        with torch.inference_mode():
            pools.take(images)
            pools.go_on()
            while pools.oldest_has_waited(max_delay):
                pools.push_oldest()
            done = pools.finished()
        yield from done
    if pools is not None:
        with torch.inference_mode():
            while pools.oldest_has_waited(0):
                pools.push_oldest()
            done = pools.finished()
        yield from done


def _images(loader: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    for batch in loader:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor):
            raise InputError(f"The loader must yield images, got {type(images).__name__}.")
        yield images.to(device, non_blocking=True)


@dataclass
class _Batch:
    """A batch on its way: numbers of its samples, and what is known of them."""

    first: int
    count: int
    left: int
    logits: Tensor
    exit_index: Tensor

    def holds(self, rows: Tensor) -> Tensor:
        """Which of these numbers are of its samples."""
        return (rows >= self.first) & (rows < self.first + self.count)


class _Pools:
    """Samples in front of each stage; `rows` number them throughout the stream."""

    def __init__(self, ee: EarlyExitModule, controller: ExitController, full: int) -> None:
        self.ee = ee
        self.controller = controller
        self.full = full
        self.pools: list[list[ActiveBatch]] = [[] for _ in range(ee.num_exits + 1)]
        self.waiting: deque[_Batch] = deque()
        self.seen = 0

    def take(self, images: Tensor) -> None:
        """Lets a batch in, and runs the first stage."""
        count, device = len(images), images.device
        logits = images.new_empty(0, self.ee.spec.num_classes)
        index = torch.empty(count, dtype=torch.int64, device=device)
        self.waiting.append(_Batch(self.seen, count, 0, logits, index))
        if count:
            rows = torch.arange(self.seen, self.seen + count, device=device)
            self._run(0, ActiveBatch((images,), count, rows))
        self.seen += count

    def go_on(self) -> None:
        """Runs every stage in front of which enough samples wait."""
        for stage in range(1, len(self.pools)):
            if sum(group.count for group in self.pools[stage]) >= self.full:
                self._drain(stage)

    def oldest_has_waited(self, max_delay: int) -> bool:
        """Whether the oldest batch may wait no longer."""
        unfinished = [at for at, batch in enumerate(self.waiting) if batch.left < batch.count]
        return bool(unfinished) and len(self.waiting) - 1 - unfinished[0] >= max_delay

    def push_oldest(self) -> None:
        """Runs the oldest batch's samples to the end, with all who wait where they do."""
        oldest = next((batch for batch in self.waiting if batch.left < batch.count), None)
        if oldest is None:
            return
        for stage in range(1, len(self.pools)):
            waiting = [group.rows for group in self.pools[stage] if group.rows is not None]
            if any(bool(oldest.holds(rows).any()) for rows in waiting):
                self._drain(stage)

    def finished(self) -> list[Prediction]:
        """Answers of the batches at the head of the line that are complete."""
        done = []
        while self.waiting and self.waiting[0].left == self.waiting[0].count:
            batch = self.waiting.popleft()
            done.append(self.ee.prediction(batch.logits, batch.exit_index, shut=False))
        return done

    def _drain(self, stage: int) -> None:
        groups, self.pools[stage] = self.pools[stage], []
        self._run(stage, _joined(groups, self.controller.stage_plan.cuts[stage - 1]))

    def _run(self, stage: int, active: ActiveBatch) -> None:
        if stage == len(self.controller.stage_plan.cuts):
            assert active.rows is not None
            self._note(
                stage, active.rows, self.controller.stage_plan.runs[-1](self.ee, *active.live)
            )
            return
        left = run_stage(self.controller, stage, active)
        if left is not None:
            assert left.rows is not None
            self._note(stage, left.rows, left.logits)
        if active.count:
            self.pools[stage + 1].append(active)

    def _note(self, index: int, rows: Tensor, logits: Tensor) -> None:
        for batch in self.waiting:
            of_batch = batch.holds(rows)
            mine = rows[of_batch] - batch.first
            if not len(mine):
                continue
            if not len(batch.logits):
                batch.logits = logits.new_empty(batch.count, logits.shape[1])
            batch.logits[mine] = logits[of_batch]
            batch.exit_index[mine] = index
            batch.left += len(mine)


def _joined(groups: Sequence[ActiveBatch], cut: Cut) -> ActiveBatch:
    if len(groups) == 1:
        return groups[0]

    def rows_of(name: str) -> Tensor | None:
        found = [getattr(group, name) for group in groups]
        return None if found[0] is None else torch.cat(found)

    live = tuple(
        concat_samples(values, how)
        for values, how in zip(
            zip(*(g.live for g in groups), strict=True), cut.batch_dims, strict=True
        )
    )
    count = sum(group.count for group in groups)
    return ActiveBatch(
        live, count, rows_of("rows"), rows_of("previous_logits"), rows_of("answered")
    )
