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
class Candidates:
    """The candidate exits under one threshold; bit b of a mask is sample b.

    Attributes:
        samples: number of samples.
        counted: the samples whose cost counts.
        exits: for each candidate the samples that would exit there.
        right: for each candidate and the final classifier the samples that are right there.
        costs: of the backbone up to each candidate, and of the whole backbone.
        branches: costs of the branches.
    """

    samples: int
    counted: int
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
            cost += self.count(inside) * self.branches[index]
            cost += self.count(leaving) * self.costs[index]
            right += (leaving & self.right[index]).bit_count()
            inside ^= leaving
        cost += self.count(inside) * self.costs[-1]
        return cost, right + (inside & self.right[-1]).bit_count()

    def count(self, mask: int) -> int:
        """Return the number of samples of a mask whose cost counts."""
        return (mask & self.counted).bit_count()


def select_exits(
    confidence: Sequence[Sequence[float]],
    correct: Sequence[Sequence[bool]],
    costs: Sequence[float],
    branch_costs: Sequence[float],
    num_exits: int | None,
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
        num_exits: number of exits to choose, 1 to M; None for any number, none included.
        min_accuracy: lowest accuracy on these samples, in [0, 1].
        thresholds: confidence thresholds to compare; math.inf for no early exits.
        exact_up_to: number of candidates up to which the search is exact.

    Raises:
        PlacementError: shapes or values that do not fit, or no choice is accurate enough.
    """
    samples, number = check_outputs(confidence, correct, costs, branch_costs, num_exits)
    required = required_samples(min_accuracy, samples)
    right = [mask(row[index] for row in correct) for index in range(number + 1)]
    columns = [[row[index] for row in confidence] for index in range(number)]
    everyone = (1 << samples) - 1
    given = [
        (
            threshold,
            Candidates(
                samples,
                everyone,
                [mask(value >= threshold for value in column) for column in columns],
                right,
                costs,
                branch_costs,
            ),
        )
        for threshold in checked_thresholds(thresholds)
    ]
    found = cheapest(given, num_exits, required, exact_up_to)
    if found is None:
        raise not_accurate(num_exits, min_accuracy, right[-1].bit_count() / samples)
    return found


def cheapest(
    given: Sequence[tuple[float, Candidates]],
    num_exits: int | None,
    required: int,
    exact_up_to: int = EXACT_UP_TO,
) -> Selection | None:
    """Return the subset with the lowest total cost; None if none is accurate enough.

    Args:
        given: thresholds, and the candidates under each.
        num_exits: number of exits to choose; None for any number.
        required: least number of samples that are right.
        exact_up_to: number of candidates up to which the search is exact.
    """
    exact = len(given[0][1].exits) <= exact_up_to
    best: Selection | None = None
    limit = math.inf
    for threshold, candidates in given:
        search = _search if exact else _greedy
        indices = search(candidates, num_exits, required, limit)
        if indices is not None:
            limit, hits = candidates.evaluate(indices)
            accuracy, cost = hits / candidates.samples, limit / candidates.counted.bit_count()
            best = Selection(indices, float(threshold), accuracy, cost, exact)
    return best


def _search(
    given: Candidates, num_exits: int | None, required: int, limit: float
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
    lowest_costs = list(accumulate(reversed([*whole, given.costs[-1]]), min))[::-1]
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
            total += given.count(leaving) * lowest_costs[later]
            inside ^= leaving
        return total + given.count(inside) * given.costs[-1]

    def visit(index: int, chosen: tuple[int, ...], inside: int, cost: float, right: int) -> None:
        nonlocal best, best_cost
        if len(chosen) == num_exits or index == number:
            if num_exits is not None and len(chosen) < num_exits:
                return
            total = cost + given.count(inside) * given.costs[-1]
            reached = right + (inside & given.right[-1]).bit_count()
            if reached >= required and total < best_cost:
                best, best_cost = chosen, total
            return
        if num_exits is not None and number - index < num_exits - len(chosen):
            return
        if right + (inside & hopeful[index]).bit_count() < required:
            return
        if cost + lowest(inside, index) >= best_cost:
            return
        leaving = inside & given.exits[index]
        taken = cost + given.count(inside) * given.branches[index]
        taken += given.count(leaving) * given.costs[index]
        hits = (leaving & given.right[index]).bit_count()
        visit(index + 1, (*chosen, index), inside ^ leaving, taken, right + hits)
        visit(index + 1, chosen, inside, cost, right)

    visit(0, (), (1 << given.samples) - 1, 0.0, 0)
    return best


def _greedy(
    given: Candidates, num_exits: int | None, required: int, limit: float
) -> tuple[int, ...] | None:
    """Return exits added one by one, if they are accurate enough and below a total cost."""
    chosen: tuple[int, ...] = ()
    best: tuple[int, ...] | None = None
    number = len(given.exits)
    sizes = range(number + 1) if num_exits is None else (num_exits,)
    for size in range(max(sizes) + 1):
        if size:
            options = []
            for index in set(range(number)) - set(chosen):
                subset = tuple(sorted((*chosen, index)))
                cost, right = given.evaluate(subset)
                # Accurate enough and cheap first; else the most accurate.
                options.append((max(required - right, 0), cost, subset))
            chosen = min(options)[2]
        cost, right = given.evaluate(chosen)
        if size in sizes and right >= required and cost < limit:
            best, limit = chosen, cost
    return best


def required_samples(min_accuracy: float, samples: int) -> int:
    """Return the smallest number of samples whose share is at least an accuracy.

    Raises:
        PlacementError: the accuracy is not in [0, 1].
    """
    if not 0 <= min_accuracy <= 1:
        raise PlacementError(f"Expected an accuracy in [0, 1], got {min_accuracy!r}.")
    return math.ceil(min_accuracy * samples - 1e-9)


def checked_thresholds(thresholds: Sequence[float]) -> Sequence[float]:
    """Return thresholds; raise PlacementError if there is none, or one is NaN."""
    if not len(thresholds) or any(math.isnan(threshold) for threshold in thresholds):
        raise PlacementError(f"Expected at least one threshold, none NaN, got {thresholds!r}.")
    return thresholds


def not_accurate(num_exits: int | None, min_accuracy: float, final: float) -> PlacementError:
    """Return the error for an accuracy that no choice of exits reaches.

    Args:
        num_exits: number of exits to choose; None for any number.
        min_accuracy: the accuracy.
        final: that of the final classifier.
    """
    return PlacementError(
        f"No choice of {'any' if num_exits is None else num_exits} exits reaches an accuracy of "
        f"{min_accuracy:g} at the given thresholds; the final classifier alone has {final:g}. "
        "Accept a lower one, or add higher thresholds (math.inf: no early exits)."
    )


def mask(values: Iterable[bool]) -> int:
    """Return an integer whose bit b is the value of sample b."""
    digits = "".join("1" if value else "0" for value in values)
    return int(digits[::-1], 2)


def check_outputs(
    confidence: Sequence[Sequence[float]],
    correct: Sequence[Sequence[bool]],
    costs: Sequence[float],
    branch_costs: Sequence[float],
    num_exits: int | None,
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
    if num_exits is not None and not (type(num_exits) is int and 1 <= num_exits <= number):
        raise PlacementError(f"Expected 1 to {number} exits to choose, got {num_exits!r}.")
    return samples, number
