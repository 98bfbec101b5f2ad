"""The cost of a network up to each boundary where an exit can be placed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from placement.errors import PlacementError, unknown_name

if TYPE_CHECKING:
    import networkx as nx

UNIT = "FLOPs = 2 x MACs, per image"
SCHEMA = 1


@dataclass(frozen=True)
class Candidate:
    """A block boundary of a network, with the cost of the backbone up to it.

    Attributes:
        name: name of the block that ends here.
        flops: FLOPs (2 x MACs) of one image up to here.
        params: parameters used up to here, each counted once.
        bytes: bytes of activations written for one image up to here.
        live_bytes: activation memory at a cut here: bytes of the live tensors for one image.
        seconds: measured time up to here, None if it was not measured.
    """

    name: str
    flops: int
    params: int
    bytes: int
    live_bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class CostProfile:
    """The cost of a network up to each candidate boundary, in execution order.

    Attributes:
        model: name of the network.
        candidates: the boundaries.
        flops, params, bytes: cost of the whole network.
        seconds: measured time of the whole network, None if it was not measured.
        cost: the cost that `shares` are relative to, "flops" or "seconds".

    Raises:
        PlacementError: repeated names; costs that decrease from one boundary to the next or exceed
            the total; seconds that are missing for some boundaries.
        UnknownNameError: another `cost`.
    """

    model: str
    candidates: tuple[Candidate, ...]
    flops: int
    params: int
    bytes: int
    seconds: float | None = None
    cost: str = "flops"

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise PlacementError(f"Candidate name '{repeated}' occurs more than once.")
        for cost in ("flops", "params", "bytes", "seconds"):
            values = [getattr(candidate, cost) for candidate in self.candidates]
            values.append(getattr(self, cost))
            if cost == "seconds" and all(value is None for value in values):
                continue
            if None in values:
                raise PlacementError(f"The {cost} of {self.model} are not all known: {values}.")
            if any(later < earlier for earlier, later in pairwise(values)):
                raise PlacementError(f"The {cost} of {self.model} must not decrease: {values}.")
        if self.cost not in ("flops", "seconds"):
            raise unknown_name("cost", self.cost, ("flops", "seconds"))
        if self.cost == "seconds" and self.seconds is None:
            raise PlacementError(
                f"cost='seconds' needs times, and those of {self.model} were not measured."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, in execution order."""
        return tuple(candidate.name for candidate in self.candidates)

    @property
    def cost_name(self) -> str:
        """Name of the cost that `shares` are relative to, for messages."""
        return "FLOPs" if self.cost == "flops" else self.cost

    @property
    def shares(self) -> tuple[float, ...]:
        """Cumulative share of the backbone's cost at each candidate, in [0, 1].

        Raises:
            PlacementError: the cost of the network is 0.
        """
        total = getattr(self, self.cost)
        if total <= 0:
            raise PlacementError(
                f"{self.model} has no {self.cost_name}, so exits cannot be placed by cost."
            )
        return tuple(getattr(candidate, self.cost) / total for candidate in self.candidates)

    def to_networkx(self) -> nx.DiGraph:
        """Return the network as a chain `input → candidates → output`.

        Attributes of an edge are the `flops`, `params` and `bytes` between its two boundaries; the
        attribute of a node is its `live_bytes`.
        """
        import networkx as nx

        end = Candidate("output", self.flops, self.params, self.bytes)
        chain = nx.DiGraph(model=self.model)
        previous = Candidate("input", 0, 0, 0)
        for boundary in (*self.candidates, end):
            chain.add_edge(
                previous.name,
                boundary.name,
                flops=boundary.flops - previous.flops,
                params=boundary.params - previous.params,
                bytes=boundary.bytes - previous.bytes,
            )
            chain.nodes[boundary.name]["live_bytes"] = boundary.live_bytes
            previous = boundary
        return chain

    def to_json(self) -> str:
        """Return the profile as JSON, for `from_json`."""
        return json.dumps({"schema": SCHEMA, "unit": UNIT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> CostProfile:
        """Read a profile from the JSON of `to_json`.

        Raises:
            PlacementError: the text is not a profile.
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise PlacementError(f"Expected a cost profile of schema {SCHEMA}.")
            data.pop("unit")
            rows = tuple(Candidate(**row) for row in data.pop("candidates"))
            return cls(candidates=rows, **data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, PlacementError):
                raise
            raise PlacementError(f"Not a cost profile: {error}.") from error


@dataclass(frozen=True)
class Placement:
    """The boundaries that get an exit.

    Attributes:
        strategy: name of the strategy that chose them.
        indices: indices of the candidates, in execution order.
        names: names of the candidates.
    """

    strategy: str
    indices: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to_json(self) -> str:
        """Return the placement as JSON, for `from_json`."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Placement:
        """Read a placement from the JSON of `to_json`.

        Raises:
            PlacementError: the text is not a placement.
        """
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise PlacementError(f"Expected a placement of schema {SCHEMA}.")
            found = cls(data["strategy"], tuple(data["indices"]), tuple(data["names"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, PlacementError):
                raise
            raise PlacementError(f"Not a placement: {error}.") from error
        numbers = all(type(index) is int for index in found.indices)
        texts = isinstance(data["names"], list) and all(isinstance(n, str) for n in found.names)
        if not (numbers and texts and isinstance(found.strategy, str)):
            raise PlacementError(f"Not a placement, but values of other types: {found}.")
        if len(found.indices) != len(found.names):
            raise PlacementError(f"Not a placement: as many indices as names expected, {found}.")
        return found
