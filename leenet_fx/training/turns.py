"""Turns: the parts of a phase in which its updates alternate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from leenet_fx.methods.phases import Phase

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class Turn:
    """Consecutive batches with one update, over which learning rates rise and fall once.

    Attributes:
        update: index of the update.
        start: position of the first batch in the phase.
        length: number of batches; epochs, where the number of batches of an epoch is unknown.
    """

    update: int
    start: int
    length: int

    @property
    def end(self) -> int:
        """Position behind the last batch."""
        return self.start + self.length


def turn_at(phase: Phase, position: int, total: int | None) -> Turn:
    """Return the turn of a batch.

    Args:
        phase: with one update, whose only turn is the phase, or with several.
        position: number of completed batches of the phase; epochs, where the number of batches of
            an epoch is unknown.
        total: number of batches, or epochs, of the phase; None if it is unknown, for phases with a
            period.
    """
    updates = len(phase.updates)
    if phase.period is not None:
        index = position // phase.period
        start = index * phase.period
        end = start + phase.period
        return Turn(index % updates, start, (end if total is None else min(end, total)) - start)
    assert total is not None
    total = max(total, position + 1)
    if updates == 1:
        return Turn(0, 0, total)
    # Whole rounds of all updates; a turn has at least one batch.
    rounds = max(min(phase.turns, total) // updates, 1)
    count = min(rounds * updates, total)
    index = ((position + 1) * count - 1) // total
    start, end = index * total // count, (index + 1) * total // count
    return Turn(index % updates, start, end - start)


def warn_of_short_updates(phase: Phase, trained: Sequence[int]) -> None:
    """Log a warning of each update that had less than half of its share of the batches.

    Args:
        phase: that has ended.
        trained: number of batches that each update had.
    """
    for update, count in zip(phase.updates, trained, strict=True):
        if 2 * count * len(trained) < sum(trained):
            logger.warning(
                "Phase '%s' trained %s in only %.0f %% of its batches: train more epochs, or use a "
                "shorter period of alternating updates.",
                phase.name,
                " and ".join(update.parameter_groups),
                100 * count / sum(trained),
            )
