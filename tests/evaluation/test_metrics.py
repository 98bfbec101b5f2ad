"""Metrics against scikit-learn, scipy, and values computed by hand."""

import pytest
import scipy.stats
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score

from leenet_fx.evaluation.metrics import (
    accuracy,
    auroc,
    calibration_error,
    confusions,
    rank_correlation,
)


def random(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_accuracy_is_exact_in_double_precision():
    correct = torch.zeros(10_007, dtype=torch.bool)
    correct[:3_331] = True
    assert accuracy(correct) == 3_331 / 10_007


def test_auroc_equals_scikit_learns():
    confidence = random(0, 200).round(decimals=1)
    correct = random(1, 200) < confidence
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))
    assert auroc(confidence, torch.ones(200, dtype=torch.bool)) is None
    assert auroc(confidence, torch.zeros(200, dtype=torch.bool)) is None
    assert auroc(confidence[:0], correct[:0]) is None


def test_calibration_error_is_the_mean_gap_of_the_bins():
    confidence = torch.tensor([0.61, 0.62, 0.63, 0.64, 0.95, 0.97])
    correct = torch.tensor([True, False, True, False, True, False])
    # Two bins: confidence 0.625, accuracy 0.5 (4 samples); 0.96 and 0.5 (2 samples).
    expected = (4 * abs(0.625 - 0.5) + 2 * abs(0.96 - 0.5)) / 6
    assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(confidence[:0], correct[:0]) is None


def test_confusions_are_the_off_diagonal_of_the_confusion_matrix():
    labels = (random(2, 300) * 7).long() * 1000
    predicted = (random(3, 300) * 7).long() * 1000
    found = confusions(labels, predicted)
    matrix = confusion_matrix(labels, predicted, labels=range(0, 7000, 1000))
    expected = {
        (1000 * row, 1000 * column): int(matrix[row, column])
        for row in range(7)
        for column in range(7)
        if row != column and matrix[row, column]
    }
    assert {(label, wrong): count for label, wrong, count in found} == expected
    assert list(found) == sorted(found, key=lambda cell: (-cell[2], cell[0], cell[1]))
    assert confusions(labels, labels) == ()
    assert confusions(torch.tensor([0, 0]), torch.tensor([0, 1])) == ((0, 1, 1),)


def test_rank_correlation_equals_scipys_with_ties():
    first = random(0, 200)
    second = (random(1, 200) * 4).long() + (first > 0.5)
    expected = scipy.stats.spearmanr(first.numpy(), second.numpy()).statistic
    assert rank_correlation(first, second) == pytest.approx(float(expected), abs=1e-6)
