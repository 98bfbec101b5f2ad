"""The cost of leaving at each exit, branches passed on the way included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, overload

import torch

from leenet_fx.graph.profile import measure_call
from leenet_fx.graph.tracer import clone
from leenet_fx.parts.branches import Branch
from placement import UNIT, CostProfile, Placement
from placement.registry import unknown_name

CostKind: TypeAlias = Literal["flops", "params", "bytes"]
COST_KINDS: tuple[CostKind, ...] = ("flops", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """FLOPs (2 x MACs), parameters, and bytes of activations written, for one image."""

    flops: int
    params: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.params + other.params, self.bytes + other.bytes)


@dataclass(frozen=True)
class BranchCost:
    """What a branch costs in each of its three steps."""

    embed: Cost
    gate: Cost
    classify: Cost


def branch_cost(branch: Branch) -> BranchCost:
    """Counts a branch's steps on meta tensors; its weights are not touched.

    Parameters that gate and classifier share count with the embedding.
    """
    dtype = next((p.dtype for p in branch.parameters()), torch.float32)
    gate_only = {id(p) for p in branch.gate_parameters()}
    classifier_only = {id(p) for p in branch.classifier_parameters()}
    shared = gate_only & classifier_only
    params = {"embed": 0, "gate": 0, "classify": 0}
    for parameter in branch.parameters():
        key = id(parameter)
        step = "embed"
        if key not in shared:
            step = "gate" if key in gate_only else "classify" if key in classifier_only else "embed"
        params[step] += parameter.numel()
    meta = clone(branch, "meta").eval()
    assert isinstance(meta, Branch)
    features = [torch.empty(f.shape, dtype=dtype, device="meta") for f in branch.features]
    site = branch.site
    earlier = None
    if branch.reads_earlier:
        earlier = torch.empty(1, site.position, site.num_classes, dtype=dtype, device="meta")
    state, *embed = measure_call(
        lambda *given: meta.embed(*meta.reduce(*given), earlier=earlier), *features
    )
    _, *gate = measure_call(lambda given: meta.score(meta.evidence(given, earlier)), state)
    _, *classify = measure_call(meta.classify, state)
    return BranchCost(
        embed=Cost(embed[0], params["embed"], embed[1]),
        gate=Cost(gate[0], params["gate"], gate[1]),
        classify=Cost(classify[0], params["classify"], classify[1]),
    )


@dataclass(frozen=True)
class CostRow:
    """What one image has cost when it leaves here, absolute and relative to the plain model."""

    name: str
    flops: int
    params: int
    bytes: int
    relative_flops: float
    relative_params: float
    relative_bytes: float


class CostTable(Sequence[CostRow]):
    """One row for each exit and one for the final classifier.

    Attributes:
        model: name of the network.
        plain: cost of the plain model.
        unit: how FLOPs are counted.
    """

    unit = UNIT

    def __init__(self, model: str, plain: Cost, rows: Sequence[CostRow]) -> None:
        self.model = model
        self.plain = plain
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> CostRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CostRow]: ...
    def __getitem__(self, index: int | slice) -> CostRow | Sequence[CostRow]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[CostRow]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CostTable)
            and (self.model, self.plain) == (other.model, other.plain)
            and self._rows == other._rows
        )

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.name}: {row.relative_flops:.3f}" for row in self._rows)
        return f"CostTable({self.model}: {rows})"

    def relative(self, kind: str = "flops") -> tuple[float, ...]:
        """Cost of leaving at each exit and at the end, relative to the plain model.

        Args:
            kind: "flops", "params" (as LEENet published) or "bytes".

        Raises:
            UnknownNameError: another kind.
        """
        check_cost_kind(kind)
        return tuple(getattr(row, f"relative_{kind}") for row in self._rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "unit": self.unit,
            "total": asdict(self.plain),
            "exits": [asdict(row) for row in self._rows],
        }


def cost_table(
    profile: CostProfile,
    placement: Placement,
    branches: Sequence[BranchCost],
    reads: Literal["gate", "logits"],
) -> CostTable:
    """The cost table under a policy that reads gates, or class logits, at each exit it passes.

    A sample that leaves at i has run the network up to i, the deciding part of every branch up to
    i, and the classifier of i alone; the final row has run the network and every deciding part.
    """
    plain = Cost(profile.flops, profile.params, profile.bytes)
    rows: list[CostRow] = []
    passed = Cost(0, 0, 0)
    for index, branch in zip(placement.indices, branches, strict=True):
        at = profile.candidates[index]
        deciding = branch.gate if reads == "gate" else branch.classify
        passed = passed + branch.embed + deciding
        spent = Cost(at.flops, at.params, at.bytes) + passed
        if reads == "gate":
            spent = spent + branch.classify
        rows.append(_row(at.name, spent, plain))
    rows.append(_row("final", plain + passed, plain))
    return CostTable(profile.model, plain, rows)


def check_cost_kind(kind: str) -> None:
    """Raises UnknownNameError for a cost that no table has."""
    if kind not in COST_KINDS:
        raise unknown_name("cost", kind, COST_KINDS)


def _row(name: str, spent: Cost, plain: Cost) -> CostRow:
    return CostRow(
        name=name,
        flops=spent.flops,
        params=spent.params,
        bytes=spent.bytes,
        relative_flops=spent.flops / plain.flops,
        relative_params=spent.params / max(plain.params, 1),
        relative_bytes=spent.bytes / max(plain.bytes, 1),
    )
