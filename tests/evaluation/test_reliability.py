"""Reliability diagrams and failure prediction against scikit-learn and the formula."""

import numpy as np
import pytest
import torch
from helpers import attached, data
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

import leenet_fx
from leenet_fx.evaluation.exit_statistics import EXAMPLES, exit_statistics
from leenet_fx.evaluation.metrics import calibration_error
from leenet_fx.evaluation.reliability import expected_calibration_error, reliability_bins
from leenet_fx.evaluation.sample_records import SampleRecords


def confident(seed, n=500):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator) ** 0.3
    confidence[: n // 5] = 1.0
    confidence[n // 5 : n // 4] = 0.0
    confidence[n // 4 : n // 3] = 7 / 15
    return confidence, torch.rand(n, generator=generator) < confidence * 0.9


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_bins_are_those_of_scikit_learn(bins):
    confidence, correct = confident(bins)
    found = reliability_bins(confidence, correct, bins)
    share, mean = calibration_curve(correct.numpy(), confidence.double().numpy(), n_bins=bins)
    assert [row.accuracy for row in found] == pytest.approx(share.tolist())
    assert [row.confidence for row in found] == pytest.approx(mean.tolist())
    assert sum(row.count for row in found) == len(confidence)


def test_error_is_the_formula_of_guo_with_confidences_of_exactly_one():
    confidence, correct = confident(1)
    values, right = confidence.double().numpy(), correct.numpy()
    expected = 0.0
    for m in range(1, 16):
        inside = (values > (m - 1) / 15) & (values <= m / 15)
        inside |= (m == 1) & (values == 0)
        if inside.any():
            gap = abs(right[inside].mean() - values[inside].mean())
            expected += inside.mean() * gap
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    assert expected_calibration_error(()) is None


def test_an_evaluation_has_bins_and_failure_prediction_of_every_exit():
    ee = attached()
    ee.policy = leenet_fx.MaxProbability(0.3)
    x, labels = data(150, 5)
    found = leenet_fx.evaluate(ee, [(x[:70], labels[:70]), (x[70:], labels[70:])])
    with torch.no_grad():
        outputs = [at.softmax(1).max(1) for at in ee.all_exits(x).logits]
    for row, (confidence, predicted) in zip(found.exits, outputs, strict=True):
        wrong = (predicted != labels).numpy()
        # Failure prediction: a wrong prediction is the positive class, 1 − confidence its score.
        score = roc_auc_score(wrong, 1 - confidence.double().numpy())
        assert row.auroc == pytest.approx(score, abs=1e-6)
        share, mean = calibration_curve(~wrong, confidence.double().numpy(), n_bins=15)
        assert [at.accuracy for at in row.reliability] == pytest.approx(share.tolist())
        assert [at.confidence for at in row.reliability] == pytest.approx(mean.tolist(), abs=1e-6)
        counts = np.array([at.count for at in row.reliability])
        assert row.calibration_error == pytest.approx(float(counts @ abs(share - mean) / 150))
    assert sum(row.count for row in found.reliability) == 150
    assert found.calibration_error == expected_calibration_error(found.reliability)


def records(labels):
    labels = torch.tensor(labels)
    n = len(labels)
    confidence = torch.linspace(0.2, 0.9, n).unsqueeze(1)
    return SampleRecords(labels, labels.unsqueeze(1), confidence, torch.zeros(n, dtype=torch.long))


def test_examples_are_of_as_many_classes_as_there_are():
    ordered = records([0] * 10 + [1] * 10 + [2] * 10)
    found = exit_statistics(ordered, 0, "final", 1.0).examples
    assert [example.label for example in found] == [0, 0, 1, 1, 2, 2]
    assert [example.index for example in found] == [0, 1, 10, 11, 20, 21]
    for example in found:
        assert example.confidence == pytest.approx(float(ordered.confidence[example.index]))
    many = exit_statistics(records(sorted(range(100))), 0, "final", 1.0).examples
    labels = [example.label for example in many]
    assert len(labels) == EXAMPLES
    assert labels == sorted(set(labels))
    assert labels[-1] - labels[0] > 70
    assert len(exit_statistics(records([3, 3]), 0, "final", 1.0).examples) == 2
