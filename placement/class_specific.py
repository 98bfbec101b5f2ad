"""Exits that serve chosen classes (Bonato & Bouganis 2021)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from placement.errors import PlacementError
from placement.selection import (
    EXACT_UP_TO,
    Candidates,
    Selection,
    cheapest,
    check_outputs,
    checked_thresholds,
    mask,
    not_accurate,
    required_samples,
)


def class_specific(
    confidence: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[int]],
    labels: Sequence[int],
    costs: Sequence[float],
    branch_costs: Sequence[float],
    num_exits: int | None,
    *,
    classes: Collection[int],
    min_accuracy: float,
    thresholds: Sequence[float],
    exact_up_to: int = EXACT_UP_TO,
) -> Selection:
    """Choose the exits with which samples of some classes cost the least.

    After Bonato & Bouganis (2021, "Class-specific early exit design methodology for convolutional
    neural networks"): a sample exits at the first chosen exit that predicts one of the classes with
    a confidence of at least the threshold; all others go on. The mean cost of the samples whose
    label is one of the classes is minimised, while the accuracy on the samples of *all* classes is
    held. The search is that of `select_exits`.

    Args:
        confidence: for each of n samples the confidence at each of M candidates.
        predicted: for each sample the class predicted at each candidate and by the final
            classifier, M+1.
        labels: the class of each sample.
        costs: M+1 costs of the backbone up to each candidate and in total, non-decreasing.
        branch_costs: M costs of the branches, paid by each sample that arrives there.
        num_exits: number of exits to choose, 1 to M; None for any number, none included.
        classes: the classes to serve.
        min_accuracy: lowest accuracy on the samples of all classes, in [0, 1].
        thresholds: confidence thresholds to compare; math.inf for no early exits.
        exact_up_to: number of candidates up to which the search is exact.

    Returns:
        The selection; its accuracy is that of all samples, its cost that of the samples of the
        classes.

    Raises:
        PlacementError: shapes or values that do not fit, no sample of the classes, or no choice is
            accurate enough.
    """
    if len(predicted) != len(labels):
        raise PlacementError(
            f"Expected a label for each of {len(predicted)} predictions, got {len(labels)}."
        )
    correct = [
        [guess == label for guess in row] for row, label in zip(predicted, labels, strict=True)
    ]
    samples, number = check_outputs(confidence, correct, costs, branch_costs, num_exits)
    required = required_samples(min_accuracy, samples)
    counted = mask(label in classes for label in labels)
    if not counted:
        raise PlacementError(f"No sample has one of the classes {sorted(classes)}.")
    right = [mask(row[index] for row in correct) for index in range(number + 1)]
    given = []
    for threshold in checked_thresholds(thresholds):
        exits = [
            mask(
                row[index] >= threshold and guesses[index] in classes
                for row, guesses in zip(confidence, predicted, strict=True)
            )
            for index in range(number)
        ]
        given.append((threshold, Candidates(samples, counted, exits, right, costs, branch_costs)))
    found = cheapest(given, num_exits, required, exact_up_to)
    if found is None:
        raise not_accurate(num_exits, min_accuracy, right[-1].bit_count() / samples)
    return found
