"""Metrics of classifiers: accuracy, AUROC of confidence, calibration error, confusions."""

from __future__ import annotations

import torch
from torch import Tensor

from leenet_fx.evaluation.reliability import expected_calibration_error, reliability_bins


def accuracy(correct: Tensor) -> float:
    """Return the share of correct predictions in double precision.

    Accuracies are compared with each other to 1e-9, which torchmetrics' single precision does not
    resolve.

    Args:
        correct: (n,) bool, n ≥ 1.
    """
    return float(correct.double().mean())


def auroc(confidence: Tensor, correct: Tensor) -> float | None:
    """Return the AUROC of confidence as a detector of correct predictions (failure prediction).

    It is the probability that a correct prediction has a higher confidence than a wrong one.

    Args:
        confidence: (n,) probabilities.
        correct: (n,) bool.

    Returns:
        None if all predictions are correct, or none is.
    """
    from torchmetrics.functional.classification import binary_auroc

    if not len(correct) or bool(correct.all()) or not bool(correct.any()):
        return None
    return float(binary_auroc(confidence.contiguous(), correct.long()))


def calibration_error(confidence: Tensor, correct: Tensor) -> float | None:
    """Return the expected calibration error in 15 bins: that of the reliability diagram.

    torchmetrics puts a confidence of exactly 1, which single precision often gives, into a bin of
    its own.

    Args:
        confidence: (n,) probabilities.
        correct: (n,) bool.

    Returns:
        None without samples.
    """
    return expected_calibration_error(reliability_bins(confidence, correct))


def confusions(labels: Tensor, predicted: Tensor) -> tuple[tuple[int, int, int], ...]:
    """Return (label, predicted class, count) of each kind of error, most frequent first.

    Args:
        labels: (n,) class indices.
        predicted: (n,) class indices.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    # Only classes that occur: the matrix of all classes of a large data set would be huge.
    wrong = labels != predicted
    classes, index = torch.stack([predicted[wrong], labels[wrong]]).unique(return_inverse=True)
    if not len(classes):
        return ()
    matrix = multiclass_confusion_matrix(index[0], index[1], num_classes=len(classes))
    rows, columns = matrix.nonzero(as_tuple=True)
    cells = zip(
        classes[rows].tolist(),
        classes[columns].tolist(),
        matrix[rows, columns].tolist(),
        strict=True,
    )
    return tuple(sorted(cells, key=lambda cell: (-cell[2], cell[0], cell[1])))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rank correlation; ties get their mean rank.

    Args:
        first: (n,).
        second: (n,).
    """
    from torchmetrics.functional.regression import spearman_corrcoef

    return float(spearman_corrcoef(first.double(), second.double()))
