"""A threshold for each exit: what the search finds, and how it overfits unless held out."""

import math
from itertools import product

import pytest
import torch

from leenet_fx import InputError
from leenet_fx.calibration.per_exit import per_exit, search
from leenet_fx.calibration.solvers import common, exit_indices_at, mean_cost

EXITS = 9
COSTS = [0.1 * (k + 1) for k in range(EXITS + 1)]
BUDGET = 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def calibrated(samples, generator, bias=None):
    """Exits whose confidence is the probability of being right, so one threshold is the best.

    Args:
        bias: of each exit's confidence; with one, a single threshold is not the best.
    """
    confidence = torch.rand(samples, EXITS, generator=generator, dtype=torch.float64)
    # Later exits are surer; the final classifier is right for nine of ten.
    confidence = confidence ** torch.linspace(1.0, 0.4, EXITS, dtype=torch.float64)
    chance = torch.rand(samples, EXITS + 1, generator=generator, dtype=torch.float64)
    right = torch.cat([confidence, torch.full((samples, 1), 0.9)], 1)
    losses = (chance > right).double()
    return confidence if bias is None else confidence + torch.tensor(bias), losses


def mean_loss(confidence, losses, thresholds):
    exits = exit_indices_at(confidence, thresholds)
    return float(losses.gather(1, exits.unsqueeze(1)).mean())


def at_budget(confidence, losses, thresholds):
    """Loss at the same budget: all thresholds are moved by the same amount until it is met."""
    finite = torch.tensor(thresholds, dtype=torch.float64).clamp(max=2)
    shifted = confidence - finite
    return mean_loss(shifted, losses, common(shifted, COSTS, BUDGET))


def test_the_search_finds_what_exhaustive_search_finds():
    generator = seeded(4)
    found = best = plain = 0.0
    for _ in range(6):
        confidence = torch.rand(12, 2, generator=generator, dtype=torch.float64)
        losses = (torch.rand(12, 3, generator=generator) < 0.4).double()
        costs = [0.2, 0.6, 1.0]
        values = [[*column.tolist(), math.inf] for column in confidence.T]
        affordable = [
            mean_loss(confidence, losses, thresholds)
            for thresholds in product(*values)
            if mean_cost(exit_indices_at(confidence, thresholds), costs) <= 0.6
        ]
        thresholds = search(confidence, losses, costs, 0.6)
        assert mean_cost(exit_indices_at(confidence, thresholds), costs) <= 0.6
        assert mean_loss(confidence, losses, thresholds) >= min(affordable)
        found += mean_loss(confidence, losses, thresholds)
        best += min(affordable)
        plain += mean_loss(confidence, losses, common(confidence, costs, 0.6))
    # Coordinate descent need not reach the best point, but most of the way.
    assert found - best <= 0.5 * (plain - best)


def test_the_search_overfits_by_a_point_and_the_held_out_one_does_not():
    confidence, losses = calibrated(5000, seeded(1))
    others, other_losses = calibrated(40_000, seeded(2))
    searched = search(confidence, losses, COSTS, BUDGET)
    single = common(confidence, COSTS, BUDGET)
    seen = mean_loss(confidence, losses, single) - mean_loss(confidence, losses, searched)
    unseen = at_budget(others, other_losses, single) - at_budget(others, other_losses, searched)
    # It promises almost a point more than it keeps, and is worse elsewhere than one threshold.
    assert seen > 0.003
    assert seen - unseen > 0.007
    assert unseen < -0.002
    held_out = per_exit(confidence, losses, COSTS, BUDGET, generator=seeded())
    assert (
        at_budget(others, other_losses, held_out) <= at_budget(others, other_losses, single) + 0.002
    )
    assert mean_cost(exit_indices_at(confidence, held_out), COSTS) <= BUDGET


def test_thresholds_that_differ_for_a_reason_are_kept():
    # The first exits are far too sure of themselves.
    bias = [0.4, 0.4, 0.4, 0.4, 0.0, 0.0, 0.0, 0.0, 0.0]
    confidence, losses = calibrated(5000, seeded(1), bias)
    others, other_losses = calibrated(40_000, seeded(2), bias)
    single = common(confidence, COSTS, BUDGET)
    chosen = per_exit(confidence, losses, COSTS, BUDGET, generator=seeded())
    gained = at_budget(others, other_losses, single) - at_budget(others, other_losses, chosen)
    assert gained > 0.02
    assert chosen[0] > chosen[-1]


def test_the_same_generator_gives_the_same_thresholds_and_ties_exit_together():
    confidence, losses = calibrated(300, seeded(1))
    confidence = (4 * confidence).round().float() / 4
    first, second = (
        per_exit(confidence, losses, COSTS, BUDGET, generator=seeded(3)) for _ in range(2)
    )
    assert first == second
    assert mean_cost(exit_indices_at(confidence, first), COSTS) <= BUDGET


@pytest.mark.parametrize(
    ("losses", "folds", "message"),
    [
        (torch.zeros(20, EXITS), 5, r"\(n, N\+1\) .* got \(20, 9\) and \(20, 9\)"),
        (torch.full((20, EXITS + 1), math.nan), 5, "Losses must be finite"),
        (torch.zeros(20, EXITS + 1), 1, "2 to 20 folds for 20 samples, got 1"),
        (torch.zeros(20, EXITS + 1), 21, "got 21"),
        (torch.zeros(20, EXITS + 1), 2.0, r"got 2\.0"),
    ],
)
def test_what_does_not_fit_is_an_error(losses, folds, message):
    confidence = torch.rand(20, EXITS)
    with pytest.raises(InputError, match=message):
        per_exit(confidence, losses, COSTS, BUDGET, generator=seeded(), folds=folds)


def test_a_budget_below_the_first_exit_is_an_error():
    with pytest.raises(InputError, match="budget"):
        per_exit(
            torch.rand(20, EXITS), torch.zeros(20, 10), COSTS, 0.05, generator=seeded(), folds=2
        )
