"""Measured times of stages and branches, and the times of batches computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

from leenet_fx import tables
from leenet_fx.errors import InputError
from leenet_fx.policies import computed_states


@dataclass(frozen=True)
class Latency:
    """Measured seconds; each inner tuple has one value for each of `batch_sizes`.

    Attributes:
        device: name of the processor or GPU.
        threads: number of threads of the processor.
        dtype: dtype of the images.
        reads: whether gate or class logits decided at exits.
        compiled: whether stages were compiled.
        batch_sizes: ascending; numbers of samples per batch.
        reference: the batch size at which the cost of one sample is counted.
        backbone: the backbone without exits.
        stages: N+1, the backbone between exits.
        stage_and_exit: N, a stage with the deciding part of the branch behind it.
        classification: N, the class logits of exiting samples.
        regrouping: N, selecting the remaining samples and copying their values.
        backbone_quartiles: for each batch size, between which half of the times of the backbone
            lie; empty if not recorded.
        stage_and_state: N, a stage with the state of the exit behind it; empty if exits carry none.
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
    stage_and_exit: tuple[tuple[float, ...], ...]
    classification: tuple[tuple[float, ...], ...]
    regrouping: tuple[tuple[float, ...], ...]
    backbone_quartiles: tuple[tuple[float, float], ...] = ()
    stage_and_state: tuple[tuple[float, ...], ...] = ()

    @property
    def num_exits(self) -> int:
        """N."""
        return len(self.stage_and_exit)

    @property
    def branches(self) -> tuple[tuple[float, ...], ...]:
        """N, the deciding part of each branch: `stage_and_exit` less `stages`."""
        return tuple(
            tuple(max(0.0, both - alone) for both, alone in zip(with_branch, stage, strict=True))
            for with_branch, stage in zip(self.stage_and_exit, self.stages, strict=False)
        )

    def batch_seconds(
        self, counts: Sequence[int], evaluated: Sequence[bool] | None = None
    ) -> float:
        """Return the seconds of one batch.

        Between measured batch sizes, times are interpolated linearly.

        Args:
            counts: N+1, numbers of samples that exit at each exit and at the final classifier.
            evaluated: N, whether the branch of each exit runs, as `CostTable.evaluated`; None for
                all.

        Raises:
            InputError: another number of counts, or negative ones.
        """
        self._check("counts", counts)
        parts = self._parts(evaluated)
        remaining = sum(counts)
        seconds = 0.0
        for index, count in enumerate(counts[:-1]):
            if not remaining:
                return seconds
            seconds += self._at(parts[index], remaining)
            if count:
                seconds += self._at(self.classification[index], count)
                remaining -= count
                seconds += self._at(self.regrouping[index], remaining)
        return seconds + self._at(self.stages[-1], remaining)

    def expected_seconds(
        self,
        exit_shares: Sequence[float],
        batch_size: int,
        evaluated: Sequence[bool] | None = None,
    ) -> float:
        """Return the mean seconds of a batch whose samples exit independently of each other.

        The numbers of remaining and of exiting samples are binomial; a stage without remaining
        samples does not run.

        Args:
            exit_shares: N+1, the shares of samples that exit at each exit and at the final
                classifier; they sum to 1.
            batch_size: number of images.
            evaluated: N, whether the branch of each exit runs, as `CostTable.evaluated`; None for
                all.

        Raises:
            InputError: another number of shares, or shares that are no distribution; a batch size
                below 1.
        """
        self._check("exit_shares", exit_shares)
        if not math.isclose(sum(exit_shares), 1, abs_tol=1e-6):
            raise InputError(
                f"exit_shares must sum to 1, got {sum(exit_shares):g}: {list(exit_shares)}."
            )
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}.")
        # Shares of samples that remain before each stage.
        shares = [1.0, *(max(0.0, 1 - exited) for exited in accumulate(exit_shares[:-1]))]
        total, parts = 0.0, self._parts(evaluated)
        for index, (before, after) in enumerate(pairwise(shares)):
            total += self._mean(parts[index], before, batch_size)
            total += self._mean(self.classification[index], exit_shares[index], batch_size)
            # Remaining samples are copied only if a sample of the batch exits here.
            total += self._mean(self.regrouping[index], after, batch_size)
            no_exit = 1 - exit_shares[index]
            if no_exit > 0:
                skipped = self._mean(self.regrouping[index], min(1.0, after / no_exit), batch_size)
                total -= no_exit**batch_size * skipped
        return total + self._mean(self.stages[-1], shares[-1], batch_size)

    def seconds_per_exit(
        self, batch_size: int | None = None, evaluated: Sequence[bool] | None = None
    ) -> tuple[float, ...]:
        """Return N+1 seconds per sample: of one that exits at each exit, and of one that does not.

        Args:
            batch_size: size of the whole batch; None takes `reference`.
            evaluated: N, whether samples that pass an exit have run its branch; None for all.
        """
        size = self.reference if batch_size is None else batch_size
        at_exits: list[float] = []
        # An exit reads all states before it, even where no later exit is evaluated.
        total = before = 0.0
        for index, part in enumerate(self._parts(evaluated)):
            with_branch = before + self._at(self.stage_and_exit[index], size)
            at_exits.append(with_branch + self._at(self.classification[index], size))
            is_used = evaluated is None or evaluated[index]
            before += self._at(part if is_used else self._unused(index), size)
            total += self._at(part, size)
        last = total + self._at(self.stages[-1], size)
        return tuple(seconds / size for seconds in (*at_exits, last))

    def backbone_seconds(self, batch_size: int | None = None) -> float:
        """Return the seconds per sample of the backbone without exits.

        Args:
            batch_size: size of the whole batch; None takes `reference`.
        """
        size = self.reference if batch_size is None else batch_size
        return self._at(self.backbone, size) / size

    def summary(self) -> str:
        """Return milliseconds of every stage and branch as a table of text."""
        sizes = [f"b{size}" for size in self.batch_sizes]
        compiled = "compiled, " if self.compiled else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        table = tables.new_table(
            f"Latency per batch (ms) on {self.device}, {threads}",
            "part",
            *sizes,
            caption=f"{compiled}{self.dtype}; bN: batch size N; exits decide by {self.reads}.",
        )
        for index, stage in enumerate(self.stages):
            table.add_row(f"stage {index}", *map(_milliseconds, stage))
            if index < self.num_exits:
                table.add_row(f"exit {index}: decision", *map(_milliseconds, self.branches[index]))
                times = self.classification[index]
                table.add_row(f"exit {index}: classification", *map(_milliseconds, times))
        table.add_row("backbone", *map(_milliseconds, self.backbone))
        for name, index in (("backbone: quarter below", 0), ("backbone: quarter above", 1)):
            if self.backbone_quartiles:
                values = [quartiles[index] for quartiles in self.backbone_quartiles]
                table.add_row(name, *map(_milliseconds, values))
        return tables.render(table)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"unit": "seconds per batch", **asdict(self)}

    def _parts(self, evaluated: Sequence[bool] | None) -> list[tuple[float, ...]]:
        """Return the times of N stages, each with the part of its exit that runs."""
        used = [True] * self.num_exits if evaluated is None else evaluated
        parts = []
        for index, (is_used, is_read) in enumerate(zip(used, computed_states(used), strict=True)):
            unused = self._unused(index) if is_read else self.stages[index]
            parts.append(self.stage_and_exit[index] if is_used else unused)
        return parts

    def _unused(self, index: int) -> tuple[float, ...]:
        """Return the times of a stage before an exit that only passes a state on, if any."""
        return self.stage_and_state[index] if self.stage_and_state else self.stages[index]

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
    """Interpolate the time at a batch size linearly between measured ones, and extrapolate.

    An empty batch takes no time; with a single measured size, time is proportional to the size.

    Args:
        sizes: measured batch sizes, ascending.
        times: one per size.
        size: the batch size in question.
    """
    if size == 0:
        return 0.0
    if len(sizes) == 1:
        return times[0] * size / sizes[0]
    above = next((i for i, measured in enumerate(sizes) if measured >= size), len(sizes) - 1)
    high = max(above, 1)
    low = high - 1
    slope = (times[high] - times[low]) / (sizes[high] - sizes[low])
    # Extrapolation below the smallest size may cross zero.
    return max(times[low] + slope * (size - sizes[low]), 0.0)


def mean_of_binomial(value: Callable[[int], float], share: float, size: int) -> float:
    """Return E[value(K)] for K ~ Binomial(size, share)."""
    if share <= 0:
        return value(0)
    if share >= 1:
        return value(size)
    log_odds = math.log(share) - math.log1p(-share)
    log_probability = size * math.log1p(-share)
    total = 0.0
    for count in range(size + 1):
        total += math.exp(log_probability) * value(count)
        if count < size:
            log_probability += math.log((size - count) / (count + 1)) + log_odds
    return total


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
