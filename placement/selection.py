"""Exits chosen from measured confidences, predictions and costs.

Train exits at all candidate boundaries once; what any subset of them costs and gets right under a
threshold can then be computed from the cached outputs. Which samples reach an exit depends on all
exits before it, so subsets do not decompose, and the best one is found by search.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from placement.errors import PlacementError

EXACT_UP_TO = 16
"""Number of candidates up to which the search is exact by default."""


@dataclass(frozen=True)
class Selection:
    """The exits that were chosen, and what they do on the given samples.

    Attributes:
        indices: of the exits among the candidates, in execution order.
        threshold: confidence from which samples exit.
        accuracy: share of samples that are right, in [0, 1]. It is optimistic, since the exits were
            chosen on these samples.
        cost: mean cost, in the unit of the costs.
        exact: whether no other choice is cheaper; False for a greedy search.
    """

    indices: tuple[int, ...]
    threshold: float
    accuracy: float
    cost: float
    exact: bool


@dataclass(frozen=True)
class _Candidates:
    """The candidate exits under one threshold; bit b of a mask is sample b.

    Attributes:
        exits: for each candidate the samples that would exit there.
        right: for each candidate and the final classifier the samples that are right there.
        costs: of the backbone up to each candidate, and of the whole backbone.
        branches: costs of the branches.
    """

    samples: int
    exits: Sequence[int]
    right: Sequence[int]
    costs: Sequence[float]
    branches: Sequence[float]

    def evaluate(self, indices: Sequence[int]) -> tuple[float, int]:
        """Return the total cost and the number of right samples of a subset."""
        inside = (1 << self.samples) - 1
        cost, right = 0.0, 0
        for index in indices:
            leaving = inside & self.exits[index]
            cost += inside.bit_count() * self.branches[index]
            cost += leaving.bit_count() * self.costs[index]
            right += (leaving & self.right[index]).bit_count()
            inside ^= leaving
        cost += inside.bit_count() * self.costs[-1]
        return cost, right + (inside & self.right[-1]).bit_count()


def select_exits(
    confidence: Sequence[Sequence[float]],
    correct: Sequence[Sequence[bool]],
    costs: Sequence[float],
    branch_costs: Sequence[float],
    num_exits: int,
    *,
    min_accuracy: float,
    thresholds: Sequence[float],
    exact_up_to: int = EXACT_UP_TO,
) -> Selection:
    """Choose the exits with the lowest mean cost whose accuracy is high enough.

    A sample exits at the first chosen exit where its confidence is at least the threshold, the
    same for all exits. All subsets are compared under all given thresholds, by branch and bound;
    with many candidates exits are added one by one instead, each time the one after which the mean
    cost is the lowest (a named approximation: `Selection.exact` is False).

    Args:
        confidence: for each of n samples the confidence at each of M candidates.
        correct: for each sample whether each candidate and the final classifier is right, M+1.
        costs: M+1 costs of the backbone up to each candidate and in total, non-decreasing.
        branch_costs: M costs of the branches, paid by each sample that arrives there.
        num_exits: number of exits to choose, 1 to M.
        min_accuracy: lowest accuracy on these samples, in [0, 1].
        thresholds: confidence thresholds to compare; math.inf for no early exits.
        exact_up_to: number of candidates up to which the search is exact.

    Raises:
        PlacementError: shapes or values that do not fit, or no choice is accurate enough.
    """
    samples, number = _check(confidence, correct, costs, branch_costs, num_exits)
    if not 0 <= min_accuracy <= 1:
        raise PlacementError(f"Expected an accuracy in [0, 1], got {min_accuracy!r}.")
    if not len(thresholds) or any(math.isnan(threshold) for threshold in thresholds):
        raise PlacementError(f"Expected at least one threshold, none NaN, got {thresholds!r}.")
    # The smallest number of samples whose share is at least the accuracy.
    required = math.ceil(min_accuracy * samples - 1e-9)
    right = [_mask(row[index] for row in correct) for index in range(number + 1)]
    columns = [[row[index] for row in confidence] for index in range(number)]
    exact = number <= exact_up_to
    best: tuple[float, tuple[int, ...], float, int] | None = None
    for threshold in thresholds:
        exits = [_mask(value >= threshold for value in column) for column in columns]
        candidates = _Candidates(samples, exits, right, costs, branch_costs)
        limit = math.inf if best is None else best[0]
        search = _search if exact else _greedy
        found = search(candidates, num_exits, required, limit)
        if found is not None:
            cost, hits = candidates.evaluate(found)
            best = (cost, found, threshold, hits)
    if best is None:
        raise PlacementError(
            f"No choice of {num_exits} exits reaches an accuracy of {min_accuracy:g} at the given "
            f"thresholds; the final classifier alone has {right[-1].bit_count() / samples:g}. "
            "Accept a lower one, or add higher thresholds (math.inf: no early exits)."
        )
    cost, indices, threshold, hits = best
    return Selection(indices, float(threshold), hits / samples, cost / samples, exact)


def _search(
    given: _Candidates, num_exits: int, required: int, limit: float
) -> tuple[int, ...] | None:
    """Return the cheapest subset that is accurate enough, if it is below a total cost.

    Exits are taken or left from the first to the last. A branch is cut off if even with the
    cheapest way out for each remaining sample the cost is not below the best found, or if too few
    samples are right even if each is right wherever one of the later exits would let it exit.
    """
    number = len(given.exits)
    pairs = zip(given.costs[:-1], given.branches, strict=True)
    whole = [cost + branch for cost, branch in pairs]
    # For each exit the lowest cost at it or any later one.
    cheapest = list(accumulate(reversed([*whole, given.costs[-1]]), min))[::-1]
    hopeful = [given.right[-1]]
    for index in reversed(range(number)):
        hopeful.append(hopeful[-1] | (given.exits[index] & given.right[index]))
    hopeful.reverse()
    best: tuple[int, ...] | None = None
    best_cost = limit

    def lowest(inside: int, index: int) -> float:
        total = 0.0
        for later in range(index, number):
            leaving = inside & given.exits[later]
            total += leaving.bit_count() * cheapest[later]
            inside ^= leaving
        return total + inside.bit_count() * given.costs[-1]

    def visit(index: int, chosen: tuple[int, ...], inside: int, cost: float, right: int) -> None:
        nonlocal best, best_cost
        if len(chosen) == num_exits:
            total = cost + inside.bit_count() * given.costs[-1]
            reached = right + (inside & given.right[-1]).bit_count()
            if reached >= required and total < best_cost:
                best, best_cost = chosen, total
            return
        if number - index < num_exits - len(chosen):
            return
        if right + (inside & hopeful[index]).bit_count() < required:
            return
        if cost + lowest(inside, index) >= best_cost:
            return
        leaving = inside & given.exits[index]
        taken = cost + inside.bit_count() * given.branches[index]
        taken += leaving.bit_count() * given.costs[index]
        hits = (leaving & given.right[index]).bit_count()
        visit(index + 1, (*chosen, index), inside ^ leaving, taken, right + hits)
        visit(index + 1, chosen, inside, cost, right)

    visit(0, (), (1 << given.samples) - 1, 0.0, 0)
    return best


def _greedy(
    given: _Candidates, num_exits: int, required: int, limit: float
) -> tuple[int, ...] | None:
    """Return exits added one by one, if they are accurate enough and below a total cost."""
    chosen: tuple[int, ...] = ()
    for _ in range(num_exits):
        options = []
        for index in set(range(len(given.exits))) - set(chosen):
            subset = tuple(sorted((*chosen, index)))
            cost, right = given.evaluate(subset)
            # Accurate enough and cheap first; else the most accurate.
            options.append((max(required - right, 0), cost, subset))
        chosen = min(options)[2]
    cost, right = given.evaluate(chosen)
    return chosen if right >= required and cost < limit else None


def _mask(values: Iterable[bool]) -> int:
    """Return an integer whose bit b is the value of sample b."""
    digits = "".join("1" if value else "0" for value in values)
    return int(digits[::-1], 2)


def _check(
    confidence: Sequence[Sequence[float]],
    correct: Sequence[Sequence[bool]],
    costs: Sequence[float],
    branch_costs: Sequence[float],
    num_exits: int,
) -> tuple[int, int]:
    """Return the numbers of samples and candidates; raise PlacementError if shapes do not fit."""
    samples, number = len(confidence), len(branch_costs)
    if not samples or not number or len(costs) != number + 1:
        raise PlacementError(
            f"Expected samples and one more cost than branches, got {samples} samples, "
            f"{len(costs)} costs and {number} branches."
        )
    if len(correct) != samples:
        raise PlacementError(f"Expected correctness of {samples} samples, got {len(correct)}.")
    for b, (row, hits) in enumerate(zip(confidence, correct, strict=True)):
        if len(row) != number or len(hits) != number + 1:
            raise PlacementError(
                f"Expected {number} confidences and {number + 1} values of correctness of sample "
                f"{b}, got {len(row)} and {len(hits)}."
            )
        if any(math.isnan(value) for value in row):
            raise PlacementError(f"A confidence of sample {b} is NaN.")
    if not all(math.isfinite(value) and value >= 0 for value in (*costs, *branch_costs)):
        raise PlacementError("Costs must be finite numbers of at least 0.")
    if any(later < earlier for earlier, later in pairwise(costs)):
        raise PlacementError(f"Costs of the backbone must not decrease, got {list(costs)}.")
    is_number = isinstance(num_exits, int) and not isinstance(num_exits, bool)
    if not is_number or not 1 <= num_exits <= number:
        raise PlacementError(f"Expected 1 to {number} exits to choose, got {num_exits!r}.")
    return samples, number
