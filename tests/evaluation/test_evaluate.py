"""evaluate against statistics computed by hand and by scikit-learn."""

import numpy as np
import pytest
import torch
from helpers import attached, data, loader
from networks import images, tiny
from sklearn.metrics import confusion_matrix, roc_auc_score

import leenet_fx
from leenet_fx import GateThreshold, InputError, ModeError


@pytest.fixture
def network():
    """A network, 37 images of which some exit at each exit, and their labels."""
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    x = images(37, 3, 16, 16, seed=2)
    gate_logits = ee.all_exits(x).gate_logits.detach()
    ee.policy = GateThreshold(gate_logits.quantile(0.7, dim=0).tolist())
    labels = ee(x).argmax(1).detach()
    labels[::3] = (labels[::3] + 1) % 5
    return ee, x, labels


@pytest.fixture(scope="module")
def fitted():
    ee = attached()
    leenet_fx.fit(ee, loader(), alpha=0.3, epochs={"exits": 4, "gates": 8}, method="leenet")
    gate_logits = ee.all_exits(data(150, 5)[0]).gate_logits
    ee.policy = GateThreshold(gate_logits.detach().quantile(0.7, 0).tolist())
    return ee


def correct_at_all_exits(ee, x, labels):
    with torch.no_grad():
        return torch.stack([at.argmax(1) == labels for at in ee.all_exits(x).logits])


def test_every_mean_is_over_samples(network):
    ee, x, labels = network
    uneven = [(x[a:b], labels[a:b]) for a, b in ((0, 20), (20, 21), (21, 37))]
    found = leenet_fx.evaluate(ee, uneven)
    at_all = correct_at_all_exits(ee, x, labels)
    prediction = ee.predict(x)
    correct = prediction.logits.argmax(1) == labels
    assert found.samples == 37
    assert found.accuracy == pytest.approx(float(correct.float().mean()))
    assert found.backbone_accuracy == pytest.approx(float(at_all[-1].float().mean()))
    assert found.relative_flops == pytest.approx(float(prediction.cost.mean()))
    assert found.mean_exit == pytest.approx(float(prediction.exit_index.float().mean()))
    for index, row in enumerate(found.exits):
        exits_here = prediction.exit_index == index
        assert row.count == int(exits_here.sum())
        assert row.share == pytest.approx(row.count / 37)
        assert row.accuracy == (
            pytest.approx(float(correct[exits_here].float().mean())) if row.count else None
        )
        assert row.accuracy_if_all_exit == pytest.approx(float(at_all[index].float().mean()))
    assert sum(row.count for row in found.exits) == 37
    assert len({row.count for row in found.exits}) > 1


def test_random_accuracy_is_that_of_shuffled_exits(network):
    ee, x, labels = network
    found = leenet_fx.evaluate(ee, [(x, labels)])
    exit_index = ee.predict(x).exit_index
    at_all = correct_at_all_exits(ee, x, labels)
    generator = torch.Generator().manual_seed(0)
    accuracies = []
    for _ in range(3000):
        order = torch.randperm(37, generator=generator)
        accuracies.append(float(at_all[exit_index[order], torch.arange(37)].float().mean()))
    assert found.random_accuracy == pytest.approx(sum(accuracies) / 3000, abs=0.005)


def test_statistics_agree_with_scikit_learn(fitted):
    x, labels = data(150, 5)
    found = leenet_fx.evaluate(fitted, [(x[:70], labels[:70]), (x[70:], labels[70:])])
    prediction = fitted.predict(x)
    exit_index = prediction.exit_index.numpy()
    predicted = prediction.logits.argmax(1).numpy()
    y = labels.numpy()
    assert len(set(exit_index)) > 2
    for row in found.classes:
        of_class = y == row.label
        assert row.samples == of_class.sum()
        assert row.accuracy == pytest.approx((predicted[of_class] == y[of_class]).mean())
        counts = np.bincount(exit_index[of_class], minlength=5)
        assert list(row.exit_counts) == counts.tolist()
    at_all = [at.softmax(1).max(1) for at in fitted.all_exits(x).logits]
    for index, row in enumerate(found.exits):
        here = exit_index == index
        matrix = np.zeros((5, 5), int)
        if here.any():
            matrix = confusion_matrix(y[here], predicted[here], labels=range(5))
        np.fill_diagonal(matrix, 0)
        assert sum(count for *_, count in row.confusion) == matrix.sum()
        assert all(matrix[label, wrong] == count for label, wrong, count in row.confusion)
        for example in row.examples:
            assert exit_index[example.index] == index
            assert example.label == y[example.index]
            assert example.predicted == predicted[example.index]
        confidence, classes = at_all[index]
        correct = classes.numpy() == y
        if correct.any() and not correct.all():
            score = roc_auc_score(correct, confidence.detach().numpy())
            assert row.auroc == pytest.approx(score, abs=1e-6)
    overall = roc_auc_score(predicted == y, prediction.confidence.numpy())
    assert found.auroc == pytest.approx(overall, abs=1e-6)


def test_backbone_may_be_another_module(network):
    ee, x, labels = network
    model = tiny()
    found = leenet_fx.evaluate(ee, [(x, labels)], backbone=model)
    expected = (model(x).argmax(1) == labels).float().mean()
    assert found.backbone_accuracy == pytest.approx(float(expected))
    assert found.seconds > 0
    assert found.time_ratio == found.seconds / found.backbone_seconds


def test_growing_test_sets_are_timed(fitted):
    x, labels = data(120, 5)
    batches = [(x[i : i + 30], labels[i : i + 30]) for i in range(0, 120, 30)]
    timing = leenet_fx.evaluate(fitted, batches, sizes=[15, 60, 120]).timing
    assert timing.sizes == (15, 60, 120)
    for seconds in (timing.seconds, timing.backbone_seconds):
        assert 0 < seconds[0] < seconds[1] < seconds[2]
    with pytest.raises(InputError, match="sizes contains 999"):
        leenet_fx.evaluate(fitted, [data(20)], sizes=[10, 999])


def test_summary_fits_a_terminal_and_json_has_the_names_of_exits(network):
    ee, x, labels = network
    found = leenet_fx.evaluate(ee, [(x, labels)])
    assert max(map(len, str(found).splitlines())) <= 80
    assert "blocks.2" in str(found)
    assert [row["name"] for row in found.to_dict()["exits"]] == [row.name for row in ee.costs]


def test_invalid_arguments_raise(network):
    ee, x, labels = network
    with pytest.raises(InputError, match="loader is empty"):
        leenet_fx.evaluate(ee, [])
    with pytest.raises(InputError, match="labels are absent"):
        leenet_fx.evaluate(ee, [x])
    with pytest.raises(ModeError, match=r"call \.eval\(\)"):
        leenet_fx.evaluate(ee.train(), [(x, labels)])
