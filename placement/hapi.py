"""Exits and threshold for a latency or an accuracy (HAPI)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from placement.errors import PlacementError
from placement.selection import EXACT_UP_TO, Selection, select_exits


def hapi(
    confidence: Sequence[Sequence[float]],
    correct: Sequence[Sequence[bool]],
    seconds: Sequence[float],
    branch_seconds: Sequence[float],
    *,
    max_seconds: float | None = None,
    min_accuracy: float | None = None,
    thresholds: Sequence[float],
    num_exits: int | None = None,
    exact_up_to: int = EXACT_UP_TO,
) -> Selection:
    """Choose exits and their threshold together, by measured time on the target device.

    After HAPI (Laskaridis et al. 2020, "HAPI: Hardware-aware progressive inference"): given a mean
    latency, the most accurate network; given an accuracy, the fastest. Of equally accurate ones,
    the fastest. The search is that of `select_exits`.

    Args:
        confidence: for each of n samples the confidence at each of M candidates.
        correct: for each sample whether each candidate and the final classifier is right, M+1.
        seconds: M+1 measured times of the backbone up to each candidate and in total,
            non-decreasing.
        branch_seconds: M measured times of the branches.
        max_seconds: highest mean time of a sample.
        min_accuracy: lowest accuracy on these samples, in [0, 1]. Exactly one of the two is given.
        thresholds: confidence thresholds to compare; math.inf for no early exits.
        num_exits: number of exits to choose, 1 to M; None for any number, none included.
        exact_up_to: number of candidates up to which the search is exact.

    Returns:
        The selection, whose cost is the mean time in seconds.

    Raises:
        PlacementError: not exactly one target; shapes or values that do not fit; no choice is fast
            or accurate enough.
    """
    if (max_seconds is None) == (min_accuracy is None):
        raise PlacementError(
            f"Expected one of max_seconds and min_accuracy, got {max_seconds!r} and "
            f"{min_accuracy!r}."
        )

    def fastest(accuracy: float) -> Selection:
        return select_exits(
            confidence,
            correct,
            seconds,
            branch_seconds,
            num_exits,
            min_accuracy=accuracy,
            thresholds=thresholds,
            exact_up_to=exact_up_to,
        )

    if min_accuracy is not None:
        return fastest(min_accuracy)
    assert max_seconds is not None
    best = fastest(0.0)
    if not (math.isfinite(max_seconds) and best.cost <= max_seconds):
        raise PlacementError(
            f"Expected a mean time of at least {best.cost:g} s, that of the fastest choice, got "
            f"{max_seconds!r}."
        )
    # The time of the fastest choice does not fall as the required number of right samples rises.
    samples = len(correct)
    low, high = round(best.accuracy * samples), samples
    while low < high:
        middle = (low + high + 1) // 2
        try:
            found = fastest(middle / samples)
        except PlacementError:
            high = middle - 1
            continue
        if found.cost <= max_seconds:
            best, low = found, max(middle, round(found.accuracy * samples))
        else:
            high = middle - 1
    return best
