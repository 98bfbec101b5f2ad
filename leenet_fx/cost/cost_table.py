"""The cost of exiting at each exit, including the branches before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, overload

from leenet_fx.cost.branch_cost import BranchCost, Cost
from leenet_fx.cost.latency import Latency
from leenet_fx.errors import InputError
from leenet_fx.policies import Policy
from leenet_fx.registry import unknown_name
from placement import UNIT, CostProfile, Placement

CostKind: TypeAlias = Literal["flops", "params", "bytes", "seconds"]
COST_KINDS: tuple[CostKind, ...] = ("flops", "params", "bytes", "seconds")

Reads: TypeAlias = Literal["gate", "logits"]
"""What the decision at an exit is computed from."""

_READS = {"gate": "gate logits", "logits": "class logits"}


@dataclass(frozen=True)
class CostRow:
    """Cost of one image that exits at an exit, absolute and relative to the backbone."""

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
        backbone: cost of the backbone without exits.
        reads: whether gate or class logits decide at exits.
        latency: measured times of exits that decide likewise; None if not measured.
        evaluated: N, whether samples that pass an exit have run its branch.
        previous_branches: for each row, the cost of the branches of earlier exits in it; None if
            it is not known.
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
        evaluated: Sequence[bool] | None = None,
        previous_branches: Sequence[Cost] | None = None,
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.reads = reads
        self.latency = latency
        self._rows = tuple(rows)
        self.evaluated = tuple([True] * (len(rows) - 1) if evaluated is None else evaluated)
        self.previous_branches = None if previous_branches is None else tuple(previous_branches)

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
            and (self.model, self.backbone, self.latency, self.evaluated)
            == (other.model, other.backbone, other.latency, other.evaluated)
            and self._rows == other._rows
        )

    def __repr__(self) -> str:
        rows = ", ".join(f"{row.name}: {row.relative_flops:.3f}" for row in self._rows)
        return f"CostTable({self.model}: {rows})"

    def relative(self, kind: str = "flops", *, own_branch: bool = False) -> tuple[float, ...]:
        """Return N+1 costs of an image relative to the backbone, at each exit and without exiting.

        Args:
            kind: "flops", "params" (as LEENet published), "bytes", or "seconds": at a batch size of
                `latency.reference`, on the device that `leenet_fx.profile` measured.
            own_branch: whether to leave out the branches of earlier exits, as PTEEnet's
                publication does; an image that does not exit early then costs 1.

        Raises:
            UnknownNameError: another kind.
            InputError: seconds, without a measurement of exits that decide likewise, or with
                `own_branch`.
        """
        check_cost_kind(kind)
        if own_branch:
            return self._own_branch(kind)
        if kind == "seconds":
            if self.latency is None:
                raise InputError(
                    "cost='seconds' needs measured times of exits that decide by "
                    f"{_READS[self.reads]}: call leenet_fx.profile(ee) first."
                )
            backbone = self.latency.backbone_seconds()
            per_exit = self.latency.seconds_per_exit(evaluated=self.evaluated)
            return tuple(seconds / backbone for seconds in per_exit)
        return tuple(getattr(row, f"relative_{kind}") for row in self._rows)

    def _own_branch(self, kind: str) -> tuple[float, ...]:
        """Return relative costs without the branches of earlier exits."""
        if kind == "seconds" or self.previous_branches is None:
            raise InputError("own_branch=True counts FLOPs, parameters or bytes, not seconds.")
        backbone = max(getattr(self.backbone, kind), 1)
        return tuple(
            (getattr(row, kind) - getattr(previous, kind)) / backbone
            for row, previous in zip(self._rows, self.previous_branches, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
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
    evaluated: Sequence[bool] | None = None,
) -> CostTable:
    """Build the cost table for policies that read gate logits, or class logits.

    A sample that exits at i has run the backbone up to i, the deciding part of branch i and of
    those branches before it that are evaluated, and the classifier of branch i; the last row has
    run the backbone and every deciding part that is evaluated. The states of all exits before an
    exit that is evaluated are counted, if exits carry a state.

    Args:
        profile: cost of the backbone up to each candidate boundary.
        placement: the boundaries with an exit.
        branches: costs of the branches, in order.
        reads: whether gate or class logits decide.
        latency: what was measured; dropped if exits decided otherwise.
        evaluated: whether each branch is evaluated; None for all.
    """
    backbone = Cost(profile.flops, profile.params, profile.bytes)
    rows: list[CostRow] = []
    previous: list[Cost] = []
    branch_total = state_total = Cost(0, 0, 0)
    # The states that samples have computed that do not exit early.
    final_states = Cost(0, 0, 0)
    used = [True] * len(branches) if evaluated is None else evaluated
    for index, branch, is_used in zip(placement.indices, branches, used, strict=True):
        boundary = profile.candidates[index]
        previous.append(state_total + branch_total)
        deciding = branch.gate if reads == "gate" else branch.classify
        with_branch = branch_total + branch.hidden + deciding
        state_total = state_total + branch.state
        total = Cost(boundary.flops, boundary.params, boundary.bytes) + state_total + with_branch
        if is_used:
            branch_total, final_states = with_branch, state_total
        if reads == "gate":
            total = total + branch.classify
        rows.append(_row(boundary.name, total, backbone))
    previous.append(final_states + branch_total)
    rows.append(_row("final", backbone + final_states + branch_total, backbone))
    matching = latency if latency is not None and latency.reads == reads else None
    return CostTable(profile.model, backbone, rows, reads, matching, used, previous)


def reads_of(policy: Policy) -> Reads:
    """Return what a policy reads at exits; for `NeverExit`, the gates that may be trained next."""
    return "logits" if policy.reads in ("logits", "history") else "gate"


def check_cost_kind(kind: str) -> None:
    """Raise UnknownNameError unless `kind` is one of `COST_KINDS`."""
    if kind not in COST_KINDS:
        raise unknown_name("cost", kind, COST_KINDS)


def _row(name: str, cost: Cost, backbone: Cost) -> CostRow:
    return CostRow(
        name=name,
        flops=cost.flops,
        params=cost.params,
        bytes=cost.bytes,
        relative_flops=cost.flops / backbone.flops,
        relative_params=cost.params / max(backbone.params, 1),
        relative_bytes=cost.bytes / max(backbone.bytes, 1),
    )
