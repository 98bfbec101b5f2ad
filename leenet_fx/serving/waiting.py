"""Samples that wait before a stage."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass
class Waiting:
    """Samples that came to a stage together.

    Attributes:
        group: the samples, or where they are.
        numbers: of the samples.
        arrival: of the first request among them.
        since: when they came to this stage.
    """

    group: Any
    numbers: list[int]
    arrival: float
    since: float


def waiting_count(queue: deque[Waiting]) -> int:
    """Return the number of samples in a queue."""
    return sum(len(waiting.numbers) for waiting in queue)


def first_arrival(queue: deque[Waiting]) -> float:
    """Return when the first request of a queue arrived."""
    return min(waiting.arrival for waiting in queue)


def take(queue: deque[Waiting], batch_size: int) -> list[Waiting]:
    """Remove up to `batch_size` samples from the start of a queue; groups are not divided."""
    taken = [queue.popleft()]
    count = len(taken[0].numbers)
    while queue and count + len(queue[0].numbers) <= batch_size:
        taken.append(queue.popleft())
        count += len(taken[-1].numbers)
    return taken
