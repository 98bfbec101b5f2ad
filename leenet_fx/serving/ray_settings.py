"""How many replicas each stage has on Ray Serve, and where they run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from leenet_fx.errors import InputError


@dataclass(frozen=True)
class RaySettings:
    """Replicas of stages, and the cluster.

    Attributes:
        replicas: lowest and highest number of replicas, for all stages or for each stage.
        cpus: CPUs that a replica reserves.
        address: of a Ray cluster ("auto" for the one of this machine); None starts one on this
            machine, which ends with the server.
        name: prefix of the names of the applications.
        start_seconds: time in which the replicas must have started.
    """

    replicas: tuple[tuple[int, int], ...] = ((1, 1),)
    cpus: float = 0.01
    address: str | None = None
    name: str = "leenet-fx"
    start_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not self.replicas:
            raise InputError("replicas must name one number or more, got none.")
        for low, high in self.replicas:
            if not 1 <= low <= high:
                raise InputError(
                    f"replicas must be like 2, 1-4 or 1-4,1,1 (from 1 up), got {low}-{high}."
                )
        if not 0 <= self.cpus < float("inf"):
            raise InputError(f"cpus must be a number from 0, got {self.cpus!r}.")
        if not 0 < self.start_seconds < float("inf"):
            raise InputError(f"start_seconds must be greater than 0, got {self.start_seconds!r}.")

    def of_stages(self, num_stages: int) -> list[tuple[int, int]]:
        """Return the lowest and highest number of replicas of each stage.

        Args:
            num_stages: of the network.

        Raises:
            InputError: numbers for another number of stages.
        """
        if len(self.replicas) == 1:
            return list(self.replicas) * num_stages
        if len(self.replicas) != num_stages:
            raise InputError(
                f"replicas must be one number for all stages, or one for each of the {num_stages} "
                f"stages; got {len(self.replicas)}."
            )
        return list(self.replicas)


def parse_replicas(text: str) -> tuple[tuple[int, int], ...]:
    """Return numbers of replicas.

    Args:
        text: like "2", "1-4" (as many as the load needs) or "1-4,1,1" (for each stage).

    Raises:
        InputError: any other text.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(f"replicas must be like 2, 1-4 or 1-4,1,1, got {text!r}.")
        low = int(match[1])
        found.append((low, low if match[2] is None else int(match[2])))
    return tuple(found)
