"""Losses of early exits against a loop over samples, and against metrics of other libraries."""

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss

from leenet_fx import InputError, UnknownNameError
from leenet_fx.calibration import risks
from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.calibration.risks import get_risk, list_risks, register_risk


def outputs_of(logits, labels):
    gates = tuple(torch.empty(len(labels), 0) for _ in logits[:-1])
    return CachedOutputs(tuple(logits), gates, labels)


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(200, 4, generator=generator) for _ in range(4)]
    return outputs_of(logits, torch.randint(4, (200,), generator=generator))


def test_the_accuracy_gap_is_the_difference_of_accuracies(outputs):
    losses = get_risk("accuracy-gap").losses(outputs)
    accuracies = [(logits.argmax(1) == outputs.labels).double().mean() for logits in outputs.logits]
    for index, accuracy in enumerate(accuracies):
        assert losses[:, index].mean() == pytest.approx(float(accuracies[-1] - accuracy))
    assert set(losses.unique().tolist()) == {-1, 0, 1}


def test_signs_of_the_accuracy_gap():
    right, wrong = [9.0, 0.0], [0.0, 9.0]
    logits = [
        torch.tensor([right, wrong, right, wrong]),
        torch.tensor([right, right, wrong, wrong]),
    ]
    losses = get_risk("accuracy-gap").losses(outputs_of(logits, torch.zeros(4, dtype=torch.long)))
    assert losses.tolist() == [[0, 0], [1, 0], [-1, 0], [0, 0]]


def test_disagreement_reads_no_labels_and_exceeds_the_gap(outputs):
    unlabelled = outputs_of(outputs.logits, torch.full((200,), -1))
    losses = get_risk("disagreement").losses(unlabelled)
    for b in range(200):
        classes = [int(logits[b].argmax()) for logits in outputs.logits]
        assert losses[b].tolist() == [float(c != classes[-1]) for c in classes]
    assert bool((losses >= get_risk("accuracy-gap").losses(outputs)).all())


def test_the_brier_gap_is_a_difference_of_brier_scores(outputs):
    losses = get_risk("brier-gap").losses(outputs)
    scores = [
        brier_score_loss(
            outputs.labels.numpy(),
            logits.double().softmax(1).numpy(),
            labels=range(4),
            scale_by_half=False,
        )
        for logits in outputs.logits
    ]
    assert losses.mean(0).tolist() == pytest.approx([score - scores[-1] for score in scores])


@pytest.mark.parametrize("name", ["accuracy-gap", "disagreement", "brier-gap"])
def test_losses_lie_in_their_range_and_are_zero_at_the_final_classifier(name):
    # Certain predictions, right and wrong, reach the ends of every range.
    logits = [torch.tensor([[1e4, 0.0], [0.0, 1e4], [-math.inf, 0.0]]) for _ in range(2)]
    logits[1] = logits[1].flip(1)
    risk = get_risk(name)
    losses = risk.losses(outputs_of(logits, torch.tensor([0, 0, 1])))
    assert losses.shape == (3, 2)
    assert losses.dtype == torch.float64
    assert losses[:, -1].tolist() == [0, 0, 0]
    assert risk.limits[0] <= losses.min() <= losses.max() <= risk.limits[1]
    assert losses.max() == risk.limits[1]


@pytest.mark.parametrize("name", ["accuracy-gap", "brier-gap"])
@pytest.mark.parametrize("label", [-1, 4])
def test_missing_labels_are_an_error(outputs, name, label):
    labels = outputs.labels.clone()
    labels[[3, 7]] = label
    with pytest.raises(InputError, match=r"class indices 0 to 3 for all 200 .* 2 have none"):
        get_risk(name).losses(outputs_of(outputs.logits, labels))


@pytest.mark.parametrize("name", ["accuracy-gap", "disagreement", "brier-gap"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_invalid_logits_are_an_error(outputs, name, value):
    logits = [values.clone() for values in outputs.logits]
    logits[2][5, 1] = value
    with pytest.raises(InputError, match=r"exit 2 contain NaN or infinity"):
        get_risk(name).losses(outputs_of(logits, outputs.labels))
    with pytest.raises(InputError, match="at least one sample"):
        get_risk(name).losses(outputs.select(slice(0)))


def test_risks_can_be_added(outputs, monkeypatch):
    monkeypatch.setattr(risks._risks, "_parts", dict(risks._risks._parts))

    @register_risk("top-2", (0.0, 1.0), labelled=False)
    def top_two(outputs):
        best = outputs.logits[-1].topk(2, 1).indices
        predicted = torch.stack([logits.argmax(1) for logits in outputs.logits], 1)
        return (predicted.unsqueeze(2) != best.unsqueeze(1)).all(2).double()

    assert "top-2" in list_risks()
    assert get_risk("top-2").losses(outputs)[:, -1].sum() == 0
    with pytest.raises(UnknownNameError, match="Did you mean 'disagreement'"):
        get_risk("disagrement")
    with pytest.raises(ValueError, match="already registered"):
        register_risk("disagreement", (0.0, 1.0))(top_two)
