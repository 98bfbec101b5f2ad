"""Samples of many requests wait before each stage, and run together on replicas of Ray Serve.

Stages are pure functions: samples whose replica is lost, or what it had put into the object store,
begin anew at the first stage.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from leenet_fx.serving.predictor import Answer, OverloadedError, Predictor
from leenet_fx.serving.ray_cluster import StageDeployments, StageResult
from leenet_fx.serving.settings import Settings
from leenet_fx.serving.waiting import Waiting, first_arrival, take, waiting_count

logger = logging.getLogger("leenet_fx")

GIVE_UP_SECONDS = 300.0
"""Time after which samples whose replicas are lost again and again get no answer."""

PAUSE_SECONDS = 0.1
"""Time before samples of a lost replica begin anew."""


class _Sample(NamedTuple):
    image: NDArray[np.float32]
    point: str
    arrival: float
    future: asyncio.Future[Answer]


class RayStages(Predictor):
    """Batches samples for each stage, and sends the batches to its replicas.

    A batch is sent when `batch_size` samples wait before a stage, or when one of them has waited
    `max_delay` seconds since its request arrived, and the stage's replicas take one. While they are
    busy, samples gather, so batches grow with the load. It belongs to one event loop.

    Attributes:
        limits: number of batches of each stage that replicas have at most.
        samples: those that were accepted and have no answer yet, by number.
        running: number of batches of each stage that replicas have.
        restarted: number of times that a sample began anew.
    """

    def __init__(self, deployments: StageDeployments, settings: Settings) -> None:
        """Prepare queues.

        Args:
            deployments: of the stages; `stop` ends them.
            settings: batch size, delay, and bound of the queues.
        """
        self.deployments = deployments
        self.batch_size = settings.batch_size
        self.max_delay = settings.max_delay
        self.queue = settings.queue
        self.limits = list(deployments.limits)
        self.restarted = 0
        number = len(deployments.handles)
        self._queues: list[dict[str, deque[Waiting]]] = [{} for _ in range(number)]
        self.running = [0] * number
        self._timers: list[asyncio.TimerHandle | None] = [None] * number
        self.samples: dict[int, _Sample] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Do nothing: the replicas run."""

    def stop(self) -> None:
        self.deployments.stop()

    async def answer(self, image: NDArray[np.float32], point: str) -> Answer:
        if len(self.samples) >= self.queue:
            raise OverloadedError(f"{self.queue} samples wait: try again later.")
        number, now = next(self._numbers), time.monotonic()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.samples[number] = _Sample(image, point, now, future)
        self._add(0, point, Waiting(image, [number], now, now))
        try:
            return await future
        finally:
            del self.samples[number]

    def _add(self, stage: int, point: str, waiting: Waiting) -> None:
        self._queues[stage].setdefault(point, deque()).append(waiting)
        self._send(stage)

    def _send(self, stage: int) -> None:
        """Send the batches of a stage that are due and that its replicas take."""
        loop = asyncio.get_running_loop()
        timer = self._timers[stage]
        if timer is not None:
            timer.cancel()
            self._timers[stage] = None
        while self.running[stage] < self.limits[stage]:
            queues = {p: queue for p, queue in self._queues[stage].items() if queue}
            if not queues:
                return
            due = {p: self._due(queue) for p, queue in queues.items()}
            point = min(due, key=lambda p: due[p])
            delay = due[point] - time.monotonic()
            if delay > 0:
                self._timers[stage] = loop.call_later(delay, self._send, stage)
                return
            self.running[stage] += 1
            taken = take(queues[point], self.batch_size)
            task = loop.create_task(self._run(stage, point, taken))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _due(self, queue: deque[Waiting]) -> float:
        """Return when a batch of a queue is to be sent."""
        first = first_arrival(queue)
        return first if waiting_count(queue) >= self.batch_size else first + self.max_delay

    async def _run(self, stage: int, point: str, taken: Sequence[Waiting]) -> None:
        numbers = [number for waiting in taken for number in waiting.numbers]
        groups = [waiting.group for waiting in taken]
        failure: Exception | None = None
        found: StageResult | None = None
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                found = await self.deployments.handles[stage].remote(point, groups, numbers)
        except TimeoutError:
            failure = OverloadedError("No replica answered in time.")
        except RayTaskError as error:
            # The stage itself failed, and would fail again.
            failure = error
        except (RayError, RayServeException) as error:
            logger.warning(
                "A replica of stage %d is lost (%s): %d samples begin anew.",
                stage,
                type(error).__name__,
                len(numbers),
            )
        except Exception as error:
            failure = error
        finally:
            self.running[stage] -= 1
        if failure is not None:
            self._fail(numbers, failure)
        elif found is None:
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._again, numbers)
        else:
            self.on_batch(stage, len(numbers))
            self._deliver(stage, point, StageResult(*found))
        self._send(stage)

    def _deliver(self, stage: int, point: str, found: StageResult) -> None:
        for answers in found.answers:
            exit_index, numbers, labels, probabilities = answers
            for number, label, probability in zip(numbers, labels, probabilities, strict=True):
                sample = self.samples.get(number)
                if sample is not None and not sample.future.done():
                    sample.future.set_result(Answer(label, probability, exit_index, point))
        arrivals = [self.samples[n].arrival for n in found.numbers if n in self.samples]
        if arrivals:
            group: Any = found.remaining[0]
            waiting = Waiting(group, found.numbers, min(arrivals), time.monotonic())
            self._add(stage + 1, point, waiting)

    def _again(self, numbers: Sequence[int]) -> None:
        now = time.monotonic()
        for number in numbers:
            sample = self.samples.get(number)
            if sample is None:
                continue
            if now - sample.arrival > GIVE_UP_SECONDS:
                self._fail([number], OverloadedError("Replicas are lost again and again."))
                continue
            self.restarted += 1
            self._add(0, sample.point, Waiting(sample.image, [number], sample.arrival, now))

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        for number in numbers:
            sample = self.samples.get(number)
            if sample is not None and not sample.future.done():
                sample.future.set_exception(error)
