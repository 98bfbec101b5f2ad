"""Discrete-event simulation of stages with replicas behind one or more HTTP processes.

It has the rules of `RayStages`: samples wait before each stage, a batch is sent when it is full or
when one of its samples has waited, a stage takes two batches for each replica, samples whose
replica or live tensors are lost begin anew. Times are taken from measurements. Processes share
cores equally, or each has one of its own.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from leenet_fx.serving.settings import Settings

BATCHES = 2
PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        replicas: their number.
        fixed: seconds of a batch, whatever its size.
        each: seconds of a sample.
    """

    replicas: int
    fixed: float
    each: float


@dataclass(frozen=True)
class System:
    """What is simulated.

    Attributes:
        stages: one or more.
        shares: of the samples that exit behind each stage.
        front: seconds of processor time of a request in an HTTP process.
        call: seconds of processor time of a batch there, each time that it is sent to a stage.
        fronts: number of HTTP processes.
        client: seconds of processor time of a request in the load process on the same cores.
        cores: that all processes share; None if each process has one of its own.
        background: number of other programs that always run on these cores.
        batch_size: largest number of samples of a batch.
        max_delay: seconds that a sample waits for others.
        queue: largest number of requests that one HTTP process answers at a time.
        lifetime: mean seconds until a replica is lost; None for never.
        restart: seconds until a lost replica is replaced.
        trip: seconds of a batch on its way to a replica and back.
    """

    stages: tuple[Stage, ...]
    shares: tuple[float, ...]
    front: float
    fronts: int = 1
    call: float = 0.0
    client: float = 0.0
    cores: float | None = None
    background: float = 0.0
    batch_size: int = Settings.batch_size
    max_delay: float = Settings.max_delay
    queue: int = Settings.queue
    lifetime: float | None = None
    restart: float = 10.0
    trip: float = 0.0


@dataclass
class _Request:
    arrival: float
    exit_stage: int
    front: int


@dataclass
class _Replica:
    batches: deque[Any] = field(default_factory=deque)
    life: int = 0
    is_up: bool = True


class Clock:
    """Runs events in order; work proceeds at the rate at which processes share cores."""

    def __init__(self, cores: float | None, background: float = 0.0) -> None:
        self.now = 0.0
        self.cores = cores
        self.background = background
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._work: list[tuple[float, int, Callable[[], None]]] = []
        self._done = 0.0
        self._order = itertools.count()

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Call something at a time."""
        heapq.heappush(self._events, (time, next(self._order), action))

    def work(self, seconds: float, action: Callable[[], None]) -> None:
        """Call something after some processor time of one process."""
        if self.cores is None:
            self.at(self.now + seconds, action)
        else:
            heapq.heappush(self._work, (self._done + seconds, next(self._order), action))

    def run(self) -> None:
        """Run until nothing is left."""
        while self._events or self._work:
            rate = 1.0
            if self._work and self.cores is not None:
                rate = min(1.0, self.cores / (len(self._work) + self.background))
            finish = float("inf")
            if self._work:
                finish = self.now + max(0.0, self._work[0][0] - self._done) / rate
            if self._events and self._events[0][0] <= finish:
                time, _, action = heapq.heappop(self._events)
            else:
                time, action = finish, self._work[0][2]
            self._done += (time - self.now) * rate
            if time == finish and self._work and action is self._work[0][2]:
                heapq.heappop(self._work)
            self.now = time
            action()


class Simulation:
    """One run."""

    def __init__(
        self, system: System, requests: Sequence[tuple[float, int]], seed: int = 0
    ) -> None:
        """Prepare requests.

        Args:
            system: what is simulated.
            requests: time of arrival and stage of exit of each, in order of time.
            seed: of losses and routes.
        """
        self.system = system
        self.random = random.Random(seed)
        self.clock = Clock(system.cores, system.background)
        self.latencies: list[float] = []
        self.refused = self.restarted = self.lost = self.batches = 0
        self.last = 0.0
        self._pending = [0] * system.fronts
        self._front_queues: list[deque[tuple[float, Callable[[], None]]]] = [
            deque() for _ in range(system.fronts)
        ]
        self._client_queue: deque[tuple[float, Callable[[], None]]] = deque()
        # Each HTTP process has queues of its own; replicas are shared.
        self._waiting: list[list[deque[Any]]] = [
            [deque() for _ in system.stages] for _ in range(system.fronts)
        ]
        self._running = [[0] * len(system.stages) for _ in range(system.fronts)]
        self._replicas = [[_Replica() for _ in range(s.replicas)] for s in system.stages]
        for time, stage in requests:
            self.clock.at(time, partial(self._arrive, time, stage))
        self.end = requests[-1][0]
        if system.lifetime is not None:
            for stage, replicas in enumerate(self._replicas):
                for replica in replicas:
                    self._plan_loss(stage, replica)

    def run(self) -> dict[str, float]:
        """Return percentiles of the latency, throughput and counts."""
        self.clock.run()
        found = sorted(self.latencies)
        return {
            "p50": percentile(found, 0.5),
            "p95": percentile(found, 0.95),
            "p99": percentile(found, 0.99),
            "throughput": len(found) / max(self.last, 1e-9),
            "answered": len(found),
            "refused": self.refused,
            "replicas lost": self.lost,
            "begun anew": self.restarted,
            "batches": self.batches,
        }

    def _serially(self, queue: deque[Any], seconds: float, action: Callable[[], None]) -> None:
        """Do something in a process that does one thing at a time."""
        queue.append((seconds, action))
        if len(queue) == 1:
            self._next(queue)

    def _next(self, queue: deque[Any]) -> None:
        seconds, action = queue[0]

        def done() -> None:
            queue.popleft()
            if queue:
                self._next(queue)
            action()

        self.clock.work(seconds, done)

    def _arrive(self, arrival: float, exit_stage: int) -> None:
        if self.system.client:
            reach = partial(self._reach, arrival, exit_stage)
            self._serially(self._client_queue, self.system.client, reach)
        else:
            self._reach(arrival, exit_stage)

    def _reach(self, arrival: float, exit_stage: int) -> None:
        front = self.random.randrange(self.system.fronts)
        if self._pending[front] >= self.system.queue:
            self.refused += 1
            return
        self._pending[front] += 1
        request = _Request(arrival, exit_stage, front)
        queue = self._front_queues[front]
        self._serially(queue, self.system.front, lambda: self._add(0, [request], None))

    def _add(self, stage: int, requests: list[_Request], origin: Any) -> None:
        front = requests[0].front
        self._waiting[front][stage].append((requests, origin))
        self._send(front, stage)

    def _send(self, front: int, stage: int) -> None:
        system, queue = self.system, self._waiting[front][stage]
        limit = BATCHES * system.stages[stage].replicas
        while queue and self._running[front][stage] < limit:
            first = min(request.arrival for requests, _ in queue for request in requests)
            count = sum(len(requests) for requests, _ in queue)
            due = first + (0.0 if count >= system.batch_size else system.max_delay)
            if due > self.clock.now:
                self.clock.at(due, lambda: self._send(front, stage))
                return
            batch = [queue.popleft()]
            count = len(batch[0][0])
            while queue and count + len(queue[0][0]) <= system.batch_size:
                batch.append(queue.popleft())
                count += len(batch[-1][0])
            self._running[front][stage] += 1
            self.batches += 1
            dispatch = partial(self._dispatch, front, stage, batch, count)
            if system.call:
                self._serially(self._front_queues[front], system.call, dispatch)
            else:
                dispatch()

    def _dispatch(self, front: int, stage: int, batch: Any, count: int) -> None:
        up = [replica for replica in self._replicas[stage] if replica.is_up]
        if not up:
            again = self.clock.now + PAUSE_SECONDS
            self.clock.at(again, lambda: self._dispatch(front, stage, batch, count))
            return
        # Ray compares the queues of two replicas at random.
        pair = [self.random.choice(up), self.random.choice(up)]
        replica = min(pair, key=lambda r: len(r.batches))
        replica.batches.append((front, batch, count))
        if len(replica.batches) == 1:
            self._work(stage, replica)

    def _work(self, stage: int, replica: _Replica) -> None:
        front, batch, count = replica.batches[0]
        times, life = self.system.stages[stage], replica.life

        def done() -> None:
            if replica.life != life:
                return
            replica.batches.popleft()
            if replica.batches:
                self._work(stage, replica)
            self.clock.at(
                self.clock.now + self.system.trip,
                lambda: self._finish(front, stage, batch, (replica, life)),
            )

        is_lost = any(o is not None and o[0].life != o[1] for _, o in batch)
        seconds = 0.0 if is_lost else times.fixed + times.each * count
        self.clock.work(seconds, done)

    def _finish(self, front: int, stage: int, batch: Any, origin: Any) -> None:
        self._running[front][stage] -= 1
        requests = [request for part, _ in batch for request in part]
        if any(o is not None and o[0].life != o[1] for _, o in batch):
            self._again(requests)
        else:
            rest = [request for request in requests if request.exit_stage > stage]
            for request in requests:
                if request.exit_stage == stage:
                    self.latencies.append(self.clock.now - request.arrival)
                    self.last = self.clock.now
                    self._pending[front] -= 1
            if rest:
                self._add(stage + 1, rest, origin)
        self._send(front, stage)

    def _again(self, requests: list[_Request]) -> None:
        def begin() -> None:
            for request in requests:
                self.restarted += 1
                self._add(0, [request], None)

        self.clock.at(self.clock.now + PAUSE_SECONDS, begin)

    def _plan_loss(self, stage: int, replica: _Replica) -> None:
        assert self.system.lifetime is not None
        time = self.clock.now + self.random.expovariate(1 / self.system.lifetime)
        if time < self.end:
            self.clock.at(time, lambda: self._lose(stage, replica))

    def _lose(self, stage: int, replica: _Replica) -> None:
        self.lost += 1
        replica.life += 1
        replica.is_up = False
        batches, replica.batches = replica.batches, deque()
        for front, batch, _ in batches:
            self._running[front][stage] -= 1
            self._again([request for part, _ in batch for request in part])

        def restart() -> None:
            replica.is_up = True
            self._plan_loss(stage, replica)

        self.clock.at(self.clock.now + self.system.restart, restart)


def random_requests(
    system: System, rate: float, count: int, seed: int = 0
) -> list[tuple[float, int]]:
    """Return requests at the times of a Poisson process.

    Args:
        system: whose shares exit at each stage.
        rate: requests a second.
        count: number of requests.
        seed: of times and exits.
    """
    generator = random.Random(seed)
    exits = generator.choices(range(len(system.shares)), system.shares, k=count)
    gaps = (generator.expovariate(rate) for _ in range(count))
    return list(zip(itertools.accumulate(gaps), exits, strict=True))


def percentile(ordered: list[float], share: float) -> float:
    """Return a percentile of values in ascending order; NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
