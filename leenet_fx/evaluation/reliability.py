"""Reliability diagrams: accuracy against confidence, in bins of equal width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
"""Number of bins of equal width over [0, 1]."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose confidence is in the interval (low, high].

    Attributes:
        low: lower end of the interval; the first bin contains 0 too.
        high: upper end.
        count: number of samples, at least 1.
        correct: number of those that are predicted correctly.
        confidence: mean confidence of the samples.
    """

    low: float
    high: float
    count: int
    correct: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share of the samples that are predicted correctly."""
        return self.correct / self.count


def reliability_bins(
    confidence: Tensor, correct: Tensor, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a reliability diagram that hold samples, by increasing confidence.

    Bin m of M is ((m−1)/M, m/M], as defined by Guo et al. 2017, On Calibration of Modern Neural
    Networks.

    Args:
        confidence: (n,) probabilities of the predicted classes.
        correct: (n,) bool.
        bins: M.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    values = confidence.detach().cpu().double()
    index = torch.bucketize(values, edges[1:-1])
    counts = index.bincount(minlength=bins)
    right = index.bincount(correct.cpu().double(), minlength=bins)
    sums = index.bincount(values, minlength=bins)
    return tuple(
        ReliabilityBin(
            low=float(edges[m]),
            high=float(edges[m + 1]),
            count=int(counts[m]),
            correct=round(float(right[m])),
            confidence=float(sums[m] / counts[m]),
        )
        for m in range(bins)
        if counts[m]
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float | None:
    """Return Σ nₘ/n · |accuracyₘ − confidenceₘ| over the bins (Guo et al. 2017).

    Args:
        bins: from `reliability_bins`.

    Returns:
        None without samples.
    """
    samples = sum(row.count for row in bins)
    if not samples:
        return None
    return sum(row.count * abs(row.accuracy - row.confidence) for row in bins) / samples
