"""What a network costs up to each boundary where an exit may go."""

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
    """A block boundary of a network, and what the plain network spends up to it.

    Attributes:
        name: name of the block that ends here.
        flops: FLOPs (2 x MACs) of one image up to here.
        params: parameters used up to here, each counted once.
        bytes: bytes of activations written for one image up to here.
        live_bytes: bytes of the tensors alive here for one image: what a cut would send.
        seconds: time up to here on some device, where it was measured.
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
        flops, params, bytes: of the whole network.
        seconds: of the whole network, where it was measured.
        cost: what `shares` counts, "flops" or "seconds".

    Raises:
        PlacementError: names repeat, costs fall from one boundary to the next or pass the total;
            seconds that were not measured everywhere; another cost.
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
            twice = next(name for name in names if names.count(name) > 1)
            raise PlacementError(f"Candidate name '{twice}' occurs more than once.")
        for cost in ("flops", "params", "bytes", "seconds"):
            up_to = [getattr(candidate, cost) for candidate in self.candidates]
            up_to.append(getattr(self, cost))
            if cost == "seconds" and all(value is None for value in up_to):
                continue
            if None in up_to:
                raise PlacementError(f"The {cost} of {self.model} are not all known: {up_to}.")
            if any(later < earlier for earlier, later in pairwise(up_to)):
                raise PlacementError(f"The {cost} of {self.model} must not fall: {up_to}.")

        if self.cost not in ("flops", "seconds"):
            raise unknown_name("cost", self.cost, ("flops", "seconds"))
        if self.cost == "seconds" and self.seconds is None:
            raise PlacementError(
                f"cost='seconds' needs times, and those of {self.model} were not measured."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' names, in execution order."""
        return tuple(candidate.name for candidate in self.candidates)

    @property
    def cost_name(self) -> str:
        """What `shares` counts, in words."""
        return "FLOPs" if self.cost == "flops" else self.cost

    @property
    def shares(self) -> tuple[float, ...]:
        """Cumulative share of the plain network's cost at each candidate, in [0, 1].

        Raises:
            PlacementError: the network costs nothing.
        """
        total = getattr(self, self.cost)
        if total <= 0:
            raise PlacementError(
                f"{self.model} has no {self.cost_name}, so exits cannot be placed by cost."
            )
        return tuple(getattr(candidate, self.cost) / total for candidate in self.candidates)

    def to_networkx(self) -> nx.DiGraph:
        """The network as a chain of segments `input → candidates → output`.

        Each edge carries the `flops`, `params` and `bytes` spent between its two boundaries, and
        each candidate its `live_bytes`.
        """
        import networkx as nx

        end = Candidate("output", self.flops, self.params, self.bytes)
        chain = nx.DiGraph(model=self.model)
        before = Candidate("input", 0, 0, 0)
        for boundary in (*self.candidates, end):
            chain.add_edge(
                before.name,
                boundary.name,
                flops=boundary.flops - before.flops,
                params=boundary.params - before.params,
                bytes=boundary.bytes - before.bytes,
            )
            chain.nodes[boundary.name]["live_bytes"] = boundary.live_bytes
            before = boundary
        return chain

    def to_json(self) -> str:
        """The profile as JSON; `from_json` reads it back."""
        return json.dumps({"schema": SCHEMA, "unit": UNIT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> CostProfile:
        """Reads what `to_json` wrote.

        Raises:
            PlacementError: the text is not such a profile.
        """
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise PlacementError(f"Expected a cost profile of schema {SCHEMA}.")
            data.pop("unit")
            rows = tuple(Candidate(**row) for row in data.pop("candidates"))
            return cls(candidates=rows, **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, PlacementError):
                raise
            raise PlacementError(f"Not a cost profile: {error}.") from error


@dataclass(frozen=True)
class Placement:
    """Where exits go: candidate indices in execution order, and the strategy that chose them."""

    strategy: str
    indices: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to_json(self) -> str:
        """The placement as JSON; `from_json` reads it back."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Placement:
        """Reads what `to_json` wrote.

        Raises:
            PlacementError: the text is not a placement.
        """
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise PlacementError(f"Expected a placement of schema {SCHEMA}.")
            return cls(data["strategy"], tuple(data["indices"]), tuple(data["names"]))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, PlacementError):
                raise
            raise PlacementError(f"Not a placement: {error}.") from error
