"""What each stage and branch takes on one device, and what a batch of any mix will take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from leenet_fx import tables
from leenet_fx.errors import InputError


@dataclass(frozen=True)
class Latency:
    """Seconds, measured; each inner tuple has one for each of `batch_sizes`.

    Attributes:
        device: name of the processor or GPU.
        threads: of the processor.
        dtype: of the images.
        reads: what decided at exits, "gate" or "logits".
        compiled: whether stages were compiled.
        batch_sizes: ascending; how many samples went in.
        reference: the batch size at which one sample's cost is counted.
        plain: the plain network.
        stages: N+1, the network between exits.
        passing: N, a stage with the deciding part of the branch behind it.
        leaving: N, the class logits of samples that leave.
        moving: N, parting who stays from who leaves, and copying the values of who stays.
    """

    device: str
    threads: int
    dtype: str
    reads: Literal["gate", "logits"]
    compiled: bool
    batch_sizes: tuple[int, ...]
    reference: int
    backbone: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    passing: tuple[tuple[float, ...], ...]
    leaving: tuple[tuple[float, ...], ...]
    moving: tuple[tuple[float, ...], ...]

    @property
    def num_exits(self) -> int:
        """N."""
        return len(self.passing)

    @property
    def branches(self) -> tuple[tuple[float, ...], ...]:
        """N, the deciding part of each branch: what passing takes beyond the stage."""
        return tuple(
            tuple(max(0.0, both - alone) for both, alone in zip(with_branch, stage, strict=True))
            for with_branch, stage in zip(self.passing, self.stages, strict=False)
        )

    def of_batch(self, counts: Sequence[int]) -> float:
        """Seconds of one batch.

        Between measured batch sizes a piece's time is taken to be linear.

        Args:
            counts: N+1, how many samples leave at each exit and at the end.

        Raises:
            InputError: another number of counts, or negative ones.
        """
        self._check("counts", counts)
        arriving = sum(counts)
        spent = 0.0
        for index, leave in enumerate(counts[:-1]):
            if not arriving:
                return spent
            spent += self._at(self.passing[index], arriving)
            if leave:
                spent += self._at(self.leaving[index], leave)
                arriving -= leave
                spent += self._at(self.moving[index], arriving)
        return spent + self._at(self.stages[-1], arriving)

    def of_shares(self, shares: Sequence[float], batch_size: int) -> float:
        """Mean seconds of a batch of images that leave independently of each other.

        How many of a batch pass or leave is binomial, so a stage is now and then spared.

        Args:
            shares: N+1, of the samples, that leave at each exit and at the end; summing to 1.
            batch_size: images in a batch.

        Raises:
            InputError: another number of shares, or such as no distribution has.
        """
        self._check("shares", shares)
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(f"shares must sum to 1, got {sum(shares):g}: {list(shares)}.")
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}.")
        active = [1.0, *(max(0.0, 1 - left) for left in accumulate(shares[:-1]))]
        total = 0.0
        for index, (arrive, stay) in enumerate(pairwise(active)):
            total += self._mean(self.passing[index], arrive, batch_size)
            total += self._mean(self.leaving[index], shares[index], batch_size)
            # Who stays is copied only where somebody of the batch leaves.
            total += self._mean(self.moving[index], stay, batch_size)
            others = 1 - shares[index]
            if others > 0:
                unmoved = self._mean(self.moving[index], min(1.0, stay / others), batch_size)
                total -= others**batch_size * unmoved
        return total + self._mean(self.stages[-1], active[-1], batch_size)

    def rows(self, batch_size: int | None = None) -> tuple[float, ...]:
        """N+1 seconds a sample has cost that leaves at each exit, or at the end.

        Args:
            batch_size: of the whole batch; None takes `reference`.
        """
        size = self.reference if batch_size is None else batch_size
        passed = list(accumulate(self._at(times, size) for times in self.passing))
        at_exits = [
            spent + self._at(times, size) for spent, times in zip(passed, self.leaving, strict=True)
        ]
        last = passed[-1] + self._at(self.stages[-1], size)
        return tuple(seconds / size for seconds in (*at_exits, last))

    def backbone_seconds(self, batch_size: int | None = None) -> float:
        """Seconds a sample costs the plain network.

        Args:
            batch_size: of the whole batch; None takes `reference`.
        """
        size = self.reference if batch_size is None else batch_size
        return self._at(self.backbone, size) / size

    def summary(self) -> str:
        """Milliseconds of every stage and branch, as a table of text."""
        sizes = [f"b{size}" for size in self.batch_sizes]
        how = "compiled, " if self.compiled else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        table = tables.new_table(
            f"Milliseconds a batch on {self.device}, {threads}",
            "piece",
            *sizes,
            caption=f"{how}{self.dtype}; bN: a batch of N; exits decide by {self.reads}.",
        )
        for index, stage in enumerate(self.stages):
            table.add_row(f"stage {index}", *map(_milliseconds, stage))
            if index < self.num_exits:
                table.add_row(f"exit {index}: decide", *map(_milliseconds, self.branches[index]))
                table.add_row(f"exit {index}: leave", *map(_milliseconds, self.leaving[index]))
        table.add_row("plain", *map(_milliseconds, self.backbone))
        return tables.render(table)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"unit": "seconds a batch", **asdict(self)}

    def _check(self, name: str, values: Sequence[float]) -> None:
        if len(values) != self.num_exits + 1:
            raise InputError(
                f"{name} needs {self.num_exits + 1} values, one for each exit and one for the "
                f"final classifier, got {len(values)}."
            )
        if any(value < 0 for value in values):
            raise InputError(f"{name} must not be negative, got {list(values)}.")

    def _mean(self, times: Sequence[float], share: float, batch_size: int) -> float:
        return mean_of_binomial(lambda count: self._at(times, count), share, batch_size)

    def _at(self, times: Sequence[float], count: int) -> float:
        return interpolate(self.batch_sizes, times, count)


def interpolate(sizes: Sequence[int], times: Sequence[float], size: float) -> float:
    """The time at a batch size: linear between those measured, and on from the outer two.

    No batch takes no time; with a single measured size, time is proportional to the size.
    """
    if size == 0:
        return 0.0
    if len(sizes) == 1:
        return times[0] * size / sizes[0]
    above = next((i for i, known in enumerate(sizes) if known >= size), len(sizes) - 1)
    high = max(above, 1)
    low = high - 1
    slope = (times[high] - times[low]) / (sizes[high] - sizes[low])
    # An empty batch has a time of its own, none below zero.
    return max(times[low] + slope * (size - sizes[low]), 0.0)


def mean_of_binomial(value: Callable[[int], float], share: float, size: int) -> float:
    """E[value(K)] for K ~ Binomial(size, share)."""
    if share <= 0:
        return value(0)
    if share >= 1:
        return value(size)
    odds = math.log(share) - math.log1p(-share)
    logarithm = size * math.log1p(-share)
    total = 0.0
    for count in range(size + 1):
        total += math.exp(logarithm) * value(count)
        if count < size:
            logarithm += math.log((size - count) / (count + 1)) + odds
    return total


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
