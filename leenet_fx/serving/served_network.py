"""What a server needs of a network: stages that run on samples of many requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.registry import unknown_name

SAVED = "saved"
"""Name of the policy that a network was saved with, if it is that of no operating point."""


@dataclass(frozen=True)
class ServedPoint:
    """An operating point that requests can choose.

    Attributes:
        name: of the point.
        costs: (N+1,) cost of exiting at each exit, relative to the backbone.
        exit_shares: (N+1,) at calibration; None if it was not calibrated.
        samples: number of calibration images.
    """

    name: str
    costs: tuple[float, ...]
    exit_shares: tuple[float, ...] | None = None
    samples: int = 0


class Answers(NamedTuple):
    """Samples that exited at the same exit.

    Attributes:
        exit_index: the exit; N is the final classifier.
        numbers: of the samples.
        labels: index of the most probable class of each.
        probabilities: of that class.
    """

    exit_index: int
    numbers: list[int]
    labels: list[int]
    probabilities: list[float]


class ServedNetwork(ABC):
    """A network whose stages run one by one, on samples of any requests.

    Attributes:
        name: of the model.
        image_shape: (C, H, W).
        class_names: in the order of the logits; None if not known.
        exit_names: (N+1,) names of the blocks before the exits, and "final classifier".
        points: operating points by name.
        default_point: name of the point that was in use when the network was saved.
        transform: how images become its input; None if not known.
        num_stages: number of stages that run separately.
    """

    name: str
    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    exit_names: tuple[str, ...]
    points: Mapping[str, ServedPoint]
    default_point: str
    transform: TransformConfig | None
    num_stages: int

    def point(self, name: str) -> ServedPoint:
        """Return an operating point.

        Raises:
            UnknownNameError: no point of that name.
        """
        if name not in self.points:
            raise unknown_name("operating point", name, self.points)
        return self.points[name]

    @abstractmethod
    def first_group(self, images: Sequence[NDArray[np.float32]], numbers: Sequence[int]) -> Any:
        """Return the group of samples before the first stage.

        Args:
            images: of `image_shape`.
            numbers: of the samples, by which `Answers` name them.
        """

    @abstractmethod
    def join(self, stage: int, groups: Sequence[Any]) -> Any:
        """Return the samples of groups that wait before the same stage, in order, as one group."""

    @abstractmethod
    def run(self, stage: int, point: str, group: Any) -> tuple[list[Answers], Any | None]:
        """Run a stage.

        Args:
            stage: its index.
            point: name of the operating point.
            group: the samples; not used again.

        Returns:
            The samples that exit, and the group of those that wait before the next stage; None if
            there are none.
        """

    @abstractmethod
    def probabilities(
        self, image: NDArray[np.float32], point: str, last: int
    ) -> dict[int, NDArray[np.float32]]:
        """Return the class probabilities at each exit that a sample passes, by index of the exit.

        Args:
            image: of `image_shape`.
            point: name of the operating point, by which exits may be disabled.
            last: index of the exit at which the sample exits.
        """


def numbers_of(group: Any) -> list[int]:
    """Return the numbers of the samples of a group."""
    numbers: list[int] = group.indices.tolist()
    return numbers
