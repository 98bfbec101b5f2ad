"""The cost of leaving at each exit, branches passed on the way included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from leenet_fx.cost.latency import Latency
from leenet_fx.errors import InputError
from leenet_fx.graph.node_costs import measure_call
from leenet_fx.graph.tracer import clone
from leenet_fx.parts.branches import Branch
from leenet_fx.registry import unknown_name
from placement import UNIT, CostProfile, Placement

CostKind: TypeAlias = Literal["flops", "params", "bytes", "seconds"]
COST_KINDS: tuple[CostKind, ...] = ("flops", "params", "bytes", "seconds")


Reads: TypeAlias = Literal["gate", "logits"]


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

    hidden: Cost
    gate: Cost
    classify: Cost


def branch_cost(branch: Branch) -> BranchCost:
    """Counts a branch's steps on meta tensors; its weights are not touched.

    Parameters that gate and classifier share count with the embedding.
    """
    dtype = next((p.dtype for p in branch.parameters()), torch.float32)
    meta = clone(branch, "meta").eval()
    assert isinstance(meta, Branch)
    features = [torch.empty(f.shape, dtype=dtype, device="meta") for f in branch.features]
    site = branch.site
    previous_logits = None
    if branch.reads_previous_logits:
        previous_logits = torch.empty(
            1, site.position, site.num_classes, dtype=dtype, device="meta"
        )

    def embed(*given: Tensor) -> Tensor:
        return meta.hidden(*meta.pool(*given), previous_logits=previous_logits)

    def gate(hidden: Tensor) -> Tensor:
        return meta.gate_logit(meta.gate_inputs(hidden, previous_logits))

    hidden, *embedding = measure_call(embed, *features)
    _, *gating = measure_call(gate, hidden)
    _, *classifying = measure_call(meta.classify, hidden)
    embeds = _used(embed, features, meta)
    gates, classifies = _used(gate, [hidden], meta), _used(meta.classify, [hidden], meta)
    of_gate = _count(gates - embeds - classifies)
    of_classifier = _count(classifies - embeds - gates)
    rest = _count(meta.parameters()) - of_gate - of_classifier
    return BranchCost(
        hidden=Cost(embedding[0], rest, embedding[1]),
        gate=Cost(gating[0], of_gate, gating[1]),
        classify=Cost(classifying[0], of_classifier, classifying[1]),
    )


@torch.enable_grad()
def _used(call: Callable[..., Tensor], inputs: Sequence[Tensor], owner: nn.Module) -> set[Tensor]:
    """The owner's parameters that the result depends on."""
    parameters = [p.requires_grad_() for p in owner.parameters() if p.is_floating_point()]
    result = call(*inputs)
    if not result.requires_grad:
        return set()
    found = torch.autograd.grad(result.sum(), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, found, strict=True) if gradient is not None}


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


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
        reads: what decides at exits, "gate" or "logits".
        latency: what was measured, under the same; None where nothing was.
        unit: how FLOPs are counted.
    """

    unit = UNIT

    def __init__(
        self,
        model: str,
        backbone: Cost,
        rows: Sequence[CostRow],
        reads: Reads,
        latency: Latency | None = None,
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.reads = reads
        self.latency = latency
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
            and (self.model, self.backbone, self.latency)
            == (other.model, other.backbone, other.latency)
            and self._rows == other._rows
        )

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.name}: {row.relative_flops:.3f}" for row in self._rows)
        return f"CostTable({self.model}: {rows})"

    def relative(self, kind: str = "flops") -> tuple[float, ...]:
        """Cost of leaving at each exit and at the end, relative to the plain model.

        Args:
            kind: "flops", "params" (as LEENet published), "bytes", or "seconds": at batches of
                `latency.reference`, on the device that `leenet_fx.profile` measured.

        Raises:
            UnknownNameError: another kind.
            InputError: seconds, which nobody measured yet where exits decide as they do now.
        """
        check_cost_kind(kind)
        if kind == "seconds":
            if self.latency is None:
                raise InputError(
                    f"cost='seconds' needs measured times of exits that decide by {self.reads}: "
                    "call leenet_fx.profile(ee) first."
                )
            backbone = self.latency.backbone_seconds()
            return tuple(seconds / backbone for seconds in self.latency.rows())
        return tuple(getattr(row, f"relative_{kind}") for row in self._rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "unit": self.unit,
            "total": asdict(self.backbone),
            "exits": [asdict(row) for row in self._rows],
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


def cost_table(
    profile: CostProfile,
    placement: Placement,
    branches: Sequence[BranchCost],
    reads: Reads,
    latency: Latency | None = None,
) -> CostTable:
    """The cost table under a policy that reads gates, or class logits, at each exit it passes.

    A sample that leaves at i has run the network up to i, the deciding part of every branch up to
    i, and the classifier of i alone; the final row has run the network and every deciding part.
    """
    backbone = Cost(profile.flops, profile.params, profile.bytes)
    rows: list[CostRow] = []
    passed = Cost(0, 0, 0)
    for index, branch in zip(placement.indices, branches, strict=True):
        at = profile.candidates[index]
        deciding = branch.gate if reads == "gate" else branch.classify
        passed = passed + branch.hidden + deciding
        spent = Cost(at.flops, at.params, at.bytes) + passed
        if reads == "gate":
            spent = spent + branch.classify
        rows.append(_row(at.name, spent, backbone))
    rows.append(_row("final", backbone + passed, backbone))
    known = latency if latency is not None and latency.reads == reads else None
    return CostTable(profile.model, backbone, rows, reads, known)


def check_cost_kind(kind: str) -> None:
    """Raises UnknownNameError for a cost that no table has."""
    if kind not in COST_KINDS:
        raise unknown_name("cost", kind, COST_KINDS)


def _row(name: str, spent: Cost, backbone: Cost) -> CostRow:
    return CostRow(
        name=name,
        flops=spent.flops,
        params=spent.params,
        bytes=spent.bytes,
        relative_flops=spent.flops / backbone.flops,
        relative_params=spent.params / max(backbone.params, 1),
        relative_bytes=spent.bytes / max(backbone.bytes, 1),
    )
