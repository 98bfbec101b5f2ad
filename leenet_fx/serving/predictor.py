"""What answers samples: a thread of the server, or replicas of stages on a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Answer(NamedTuple):
    """The answer to one sample.

    Attributes:
        label: index of its most probable class.
        probability: of that class.
        exit_index: the exit at which it exited; N is the final classifier.
        point: name of the operating point.
    """

    label: int
    probability: float
    exit_index: int
    point: str


class OverloadedError(Exception):
    """Too many samples wait: the request is to be sent again later."""


class Predictor(ABC):
    """Answers samples; the stages run elsewhere.

    Attributes:
        on_batch: called with the index of a stage and the number of samples that it ran on.
    """

    on_batch: Callable[[int, int], None] = staticmethod(lambda stage, count: None)

    @abstractmethod
    def start(self) -> None:
        """Begin to answer."""

    @abstractmethod
    def stop(self) -> None:
        """Answer what was accepted, and end."""

    @abstractmethod
    async def answer(self, image: NDArray[np.float32], point: str) -> Answer:
        """Answer a sample.

        Args:
            image: of the network's shape.
            point: name of the operating point.

        Raises:
            OverloadedError: too many samples wait.
        """
