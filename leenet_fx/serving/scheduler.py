"""Samples of many requests wait before each stage and run together, in one thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from leenet_fx.serving.predictor import Answer, Predictor
from leenet_fx.serving.served_network import Answers, ServedNetwork, numbers_of
from leenet_fx.serving.waiting import Waiting, first_arrival, take, waiting_count

STARVED = 10
"""Multiple of `max_delay` after which samples before a later stage run before any others."""


class StageScheduler(Predictor):
    """Runs the stages of a network in a thread of its own.

    A stage runs when `batch_size` samples wait before it, or when one of them has waited
    `max_delay` seconds since its request arrived. Samples of one operating point run together.
    While the thread is busy, samples gather, so batches grow with the load:

    1. samples before a later stage that waited there `STARVED` times `max_delay`;
    2. later stages before which `batch_size` samples wait, the last first, which frees memory;
    3. new samples, in the order of their arrival;
    4. other samples before later stages, those that waited longest first.
    """

    def __init__(self, network: ServedNetwork, *, batch_size: int, max_delay: float) -> None:
        """Prepare queues.

        Args:
            network: its stages run.
            batch_size: largest number of samples that a stage runs at once.
            max_delay: seconds that a sample may wait for others while the thread is idle.
        """
        self.network = network
        self.batch_size = batch_size
        self.max_delay = max_delay
        self._queues: list[dict[str, deque[Waiting]]] = [{} for _ in range(network.num_stages)]
        self._answers: dict[int, tuple[Future[Answer], str, float]] = {}
        self._changed = threading.Condition()
        self._next_number = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="stages", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    async def answer(self, image: NDArray[np.float32], point: str) -> Answer:
        return await asyncio.wrap_future(self.submit(image, point))

    def submit(self, image: NDArray[np.float32], point: str) -> Future[Answer]:
        """Accept a sample.

        Args:
            image: of the network's shape.
            point: name of its operating point.
        """
        future: Future[Answer] = Future()
        now = time.monotonic()
        with self._changed:
            number = self._next_number
            self._next_number += 1
            self._answers[number] = (future, point, now)
            group = self.network.first_group([image], [number])
            waiting = Waiting(group, [number], now, now)
            self._queues[0].setdefault(point, deque()).append(waiting)
            self._changed.notify()
        return future

    def _loop(self) -> None:
        while True:
            with self._changed:
                chosen = self._choose()
                while chosen is None:
                    if self._stopping and not self._answers:
                        return
                    self._changed.wait(self._seconds_to_wait())
                    chosen = self._choose()
                stage, point = chosen
                taken = take(self._queues[stage][point], self.batch_size)
            self._run(stage, point, taken)

    def _choose(self) -> tuple[int, str] | None:
        """Return the stage and the operating point to run next; None if none is due."""
        now = time.monotonic()
        best: tuple[tuple[float, float], int, str] | None = None
        for stage, queues in enumerate(self._queues):
            for point, queue in queues.items():
                if not queue:
                    continue
                waited = now - queue[0].since
                is_full = waiting_count(queue) >= self.batch_size
                overdue = now - first_arrival(queue) >= self.max_delay
                if not (is_full or overdue or self._stopping):
                    continue
                if stage and waited >= STARVED * self.max_delay:
                    key = (0.0, -waited)
                elif stage and is_full:
                    key = (1.0, -float(stage))
                elif not stage:
                    key = (2.0, -waited)
                else:
                    key = (3.0, -waited)
                if best is None or key < best[0]:
                    best = key, stage, point
        return None if best is None else best[1:]

    def _seconds_to_wait(self) -> float | None:
        """Return the time until samples are due; None if none wait."""
        arrivals = [w.arrival for queues in self._queues for q in queues.values() for w in q]
        if not arrivals:
            return None
        return max(0.0, min(arrivals) + self.max_delay - time.monotonic())

    def _run(self, stage: int, point: str, taken: Sequence[Waiting]) -> None:
        numbers = [number for waiting in taken for number in waiting.numbers]
        try:
            groups = [waiting.group for waiting in taken]
            group = groups[0] if len(groups) == 1 else self.network.join(stage, groups)
            answers, remaining = self.network.run(stage, point, group)
        except Exception as error:
            # Requests of other batches are still answered.
            self._fail(numbers, error)
            return
        self.on_batch(stage, len(numbers))
        if remaining is not None:
            left = numbers_of(remaining)
            now = time.monotonic()
            with self._changed:
                arrival = min(self._answers[number][2] for number in left)
                waiting = Waiting(remaining, left, arrival, now)
                self._queues[stage + 1].setdefault(point, deque()).append(waiting)
        for found in answers:
            self._deliver(found)

    def _deliver(self, found: Answers) -> None:
        for number, label, probability in zip(
            found.numbers, found.labels, found.probabilities, strict=True
        ):
            with self._changed:
                future, point, _ = self._answers.pop(number)
            if future.set_running_or_notify_cancel():
                future.set_result(Answer(label, probability, found.exit_index, point))

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        for number in numbers:
            with self._changed:
                future = self._answers.pop(number)[0]
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
