"""A threshold for each exit, searched for with labels and held out against overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leenet_fx.calibration.solvers import common, exit_indices_at, mean_cost
from leenet_fx.errors import InputError

Array = npt.NDArray[np.float64]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How far thresholds may be moved from the common one to the searched ones."""

SWEEPS = 10
BISECTIONS = 20


def per_exit(
    confidence: Tensor,
    losses: Tensor,
    costs: Tensor | Sequence[float],
    budget: float,
    *,
    generator: torch.Generator,
    folds: int = 5,
) -> list[float]:
    """Return a threshold for each exit that has a low mean loss within a budget.

    N free thresholds fit the samples they are searched on: with few samples, they are worse on
    others than the single threshold of `common`. Hence the searched thresholds only set how exits
    differ: thresholds move from the common one towards them by the share of `SHARES` that is best
    on held-out samples at the same mean cost, and not at all unless that is better than the common
    threshold by more than one standard error.

    Args:
        confidence: (n, N), floating point, finite.
        losses: (n, N+1) loss of each sample at each exit and the final classifier, for instance 1
            where the prediction is wrong.
        costs: (N+1,) relative cost of each exit and of the final classifier, non-decreasing.
        budget: highest mean relative cost.
        generator: assigns the samples to folds.
        folds: number of parts, each of which is held out once; at least 2.

    Returns:
        N thresholds whose mean cost on these samples is within the budget.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the cheapest exit's cost.
    """
    _check_losses(confidence, losses)
    samples = len(confidence)
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= samples:
        raise InputError(f"Expected 2 to {samples} folds for {samples} samples, got {folds!r}.")
    fold = torch.randperm(samples, generator=generator) % folds
    columns: list[list[Tensor]] = [[] for _ in SHARES]
    for held_out in range(folds):
        fitted, other = fold != held_out, fold == held_out
        searched = search(confidence[fitted], losses[fitted], costs, budget)
        for column, share in zip(columns, SHARES, strict=True):
            thresholds = _between(confidence[fitted], searched, share, confidence[other])
            column.append(_losses_at_budget(thresholds, losses[other], costs, budget))
    values = [torch.cat(column) for column in columns]
    best = min(range(len(SHARES)), key=lambda index: float(values[index].mean()))
    gained = values[0] - values[best]
    if float(gained.mean()) <= float(gained.std()) / math.sqrt(samples):
        best = 0
    if best == 0:
        return common(confidence, costs, budget)
    searched = search(confidence, losses, costs, budget)
    shifted = _between(confidence, searched, SHARES[best], confidence)
    return _thresholds(confidence, shifted, common(shifted, costs, budget))


def search(
    confidence: Tensor, losses: Tensor, costs: Tensor | Sequence[float], budget: float
) -> list[float]:
    """Return thresholds with a low mean loss within a budget *on these samples*.

    Coordinate descent on mean loss + λ·cost: given all other thresholds, the best one of an exit
    is found exactly, from the last exit to the first, until none changes; λ is bisected. It starts
    from the common threshold, and returns it if it finds nothing better. It overfits: see
    `per_exit`.

    Args:
        confidence: (n, N), floating point, finite.
        losses: (n, N+1).
        costs: (N+1,), non-decreasing.
        budget: highest mean relative cost.

    Returns:
        N thresholds.

    Raises:
        InputError: shapes or values that do not fit, or a budget below the cheapest exit's cost.
    """
    _check_losses(confidence, losses)
    start = common(confidence, costs, budget)
    best, best_loss = start, _mean_loss(confidence, losses, start)
    scores = confidence.detach().cpu().double().numpy()
    values = losses.detach().cpu().double().numpy()
    prices = np.asarray(costs, dtype=np.float64)
    orders = [np.argsort(-column, kind="stable") for column in scores.T]
    low, high = 0.0, 1.0
    span = float(np.abs(np.diff(values, axis=1)).max()) / max(prices[-1] - prices[0], 1e-12)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        # From 0 to infinity, with half of the steps below the typical price of a loss.
        price = span * middle / (1 - middle)
        found = _descend(scores, orders, values + price * prices, start)
        exits = exit_indices_at(confidence, found)
        if mean_cost(exits, costs) > budget:
            low = middle
            continue
        high = middle
        loss = _mean_loss(confidence, losses, found)
        if loss < best_loss:
            best, best_loss = found, loss
    return best


def _descend(
    scores: Array, orders: Sequence[npt.NDArray[np.intp]], totals: Array, start: Sequence[float]
) -> list[float]:
    """Return thresholds at which no single one can be changed for a lower mean of `totals`."""
    thresholds = list(start)
    exits = scores.shape[1]
    for _ in range(SWEEPS):
        before = list(thresholds)
        # later: the total of each sample if it does not exit at the exit at hand or before.
        later = totals[:, exits]
        passing = np.cumprod(scores < np.asarray(thresholds), axis=1, dtype=bool)
        for k in reversed(range(exits)):
            arriving = passing[:, k - 1] if k else np.ones(len(scores), dtype=bool)
            order = orders[k][arriving[orders[k]]]
            thresholds[k] = _best_threshold(scores[order, k], (totals[:, k] - later)[order])
            later = np.where(scores[:, k] >= thresholds[k], totals[:, k], later)
        if thresholds == before:
            break
    return thresholds


def _best_threshold(ordered: Array, changes: Array) -> float:
    """Return the threshold at which the samples above it have the lowest sum of changes.

    Args:
        ordered: confidences in descending order.
        changes: of each sample's total if it exits here.
    """
    if not len(ordered):
        return math.inf
    sums = changes.cumsum()
    # Samples with equal confidence exit together.
    sums[:-1][ordered[1:] == ordered[:-1]] = math.inf
    best = int(sums.argmin())
    return float(ordered[best]) if sums[best] < 0 else math.inf


def _between(confidence: Tensor, searched: Sequence[float], share: float, other: Tensor) -> Tensor:
    """Return confidences of other samples, shifted so that a common threshold acts as N different.

    Shifts are of ranks among all confidences of all exits, so a share of 0 leaves their order as
    it is and the common threshold of the result is that of the confidences.

    Args:
        confidence: (n, N) that define the ranks.
        searched: N thresholds.
        share: of the way from a common threshold to the searched ones.
        other: (m, N).

    Returns:
        (m, N).
    """
    pool = confidence.flatten().sort().values

    def ranks(values: Tensor) -> Tensor:
        return torch.searchsorted(pool, values).double() / len(pool)

    limits = confidence.new_tensor(searched)
    return ranks(other.contiguous()) - share * ranks(limits)


def _losses_at_budget(
    shifted: Tensor, losses: Tensor, costs: Tensor | Sequence[float], budget: float
) -> Tensor:
    exits = exit_indices_at(shifted, common(shifted, costs, budget))
    return losses.double().gather(1, exits.unsqueeze(1)).squeeze(1)


def _thresholds(confidence: Tensor, shifted: Tensor, common_threshold: list[float]) -> list[float]:
    """Return the smallest confidence of each exit whose shifted value reaches the threshold."""
    reached = shifted >= common_threshold[0]
    values = confidence.where(reached, torch.full_like(confidence, math.inf))
    smallest: list[float] = values.amin(0).tolist()
    return smallest


def _mean_loss(confidence: Tensor, losses: Tensor, thresholds: Sequence[float]) -> float:
    exits = exit_indices_at(confidence, thresholds)
    return float(losses.double().gather(1, exits.unsqueeze(1)).mean())


def _check_losses(confidence: Tensor, losses: Tensor) -> None:
    if confidence.ndim != 2 or losses.shape != (len(confidence), confidence.shape[1] + 1):
        raise InputError(
            "Expected confidences (n, N) and losses (n, N+1) of the same samples, at the exits and "
            f"at all exits with the final classifier, got {tuple(confidence.shape)} and "
            f"{tuple(losses.shape)}."
        )
    if not bool(losses.isfinite().all()):
        raise InputError("Losses must be finite; some are NaN or infinite.")
