"""Statistics of exits, against scikit-learn and by hand; replay and sweep against real runs."""

import copy

import numpy as np
import pytest
import torch
from helpers import attached, data, loader, shuffled
from sklearn.metrics import confusion_matrix, roc_auc_score

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, NeverExit, cache_features
from leenet_fx.evaluation.evaluate import summarise
from leenet_fx.evaluation.sample_records import SampleRecords, auroc, calibration_error, replay


@pytest.fixture(scope="module")
def fitted():
    ee = attached()
    leenet_fx.fit(ee, loader(), alpha=0.3, epochs={"exits": 4, "gates": 8}, method="leenet")
    # Thresholds in the middle of what the gates say: somebody leaves everywhere.
    gates = ee.all_exits(data(150, 5)[0]).gate_logits
    ee.policy = GateThreshold(gates.detach().quantile(0.7, 0).tolist())
    return ee


def test_auroc_is_scikit_learns():
    confidence = torch.rand(200, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    right = torch.rand(200, generator=torch.Generator().manual_seed(1)) < confidence
    assert auroc(confidence, right) == pytest.approx(roc_auc_score(right, confidence))
    assert auroc(confidence, torch.ones(200, dtype=torch.bool)) is None
    assert auroc(confidence, torch.zeros(200, dtype=torch.bool)) is None
    assert auroc(confidence[:0], right[:0]) is None


def test_calibration_error_is_the_mean_gap_of_its_bins():
    confidence = torch.tensor([0.61, 0.62, 0.63, 0.64, 0.95, 0.97])
    right = torch.tensor([True, False, True, False, True, False])
    # Two bins: 0.625 said and 0.5 right (4 samples), 0.96 said and 0.5 right (2 samples).
    expected = (4 * abs(0.625 - 0.5) + 2 * abs(0.96 - 0.5)) / 6
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(confidence[:0], right[:0]) is None


def test_evaluation_agrees_with_counting(fitted):
    x, labels = data(150, 5)
    found = leenet_fx.evaluate(fitted, [(x[:70], labels[:70]), (x[70:], labels[70:])])
    prediction = fitted.predict(x)
    left = prediction.exit_index.numpy()
    answer = prediction.logits.argmax(1).numpy()
    y = labels.numpy()
    assert len(set(left)) > 2
    for row in found.classes:
        mine = y == row.label
        assert row.samples == mine.sum()
        assert row.accuracy == pytest.approx((answer[mine] == y[mine]).mean())
        assert list(row.left) == np.bincount(left[mine], minlength=5).tolist()
    everywhere = [at.softmax(1).max(1) for at in fitted.all_exits(x).logits]
    for index, outlet in enumerate(found.outlets):
        here = left == index
        table = confusion_matrix(y[here], answer[here], labels=range(5)) if here.any() else None
        for label, wrong, count in outlet.confusion:
            assert label != wrong
            assert table[label, wrong] == count
        assert sum(count for *_, count in outlet.confusion) == (answer[here] != y[here]).sum()
        counts = [count for *_, count in outlet.confusion]
        assert counts == sorted(counts, reverse=True)
        for example in outlet.examples:
            assert left[example.position] == index
            assert example.label == y[example.position]
            assert example.answer == answer[example.position]
        confidence, predicted = everywhere[index]
        right = predicted.numpy() == y
        if right.any() and not right.all():
            score = roc_auc_score(right, confidence.detach().numpy())
            assert outlet.auroc == pytest.approx(score, abs=1e-6)
    given = prediction.confidence.numpy()
    assert found.auroc == pytest.approx(roc_auc_score(answer == y, given), abs=1e-6)


def test_timing_grows_with_the_images_and_has_their_slope(fitted):
    x, labels = data(120, 5)
    batches = [(x[i : i + 30], labels[i : i + 30]) for i in range(0, 120, 30)]
    timing = leenet_fx.evaluate(fitted, batches, sizes=[15, 60, 120]).timing
    assert timing.sizes == (15, 60, 120)
    for seconds, slope in (
        (timing.seconds, timing.slope),
        (timing.backbone_seconds, timing.backbone_slope),
    ):
        assert 0 < seconds[0] < seconds[1] < seconds[2]
        assert slope == pytest.approx(np.polyfit(timing.sizes, seconds, 1)[0])
    assert timing.ratio == timing.slope / timing.backbone_slope


@pytest.mark.parametrize("sizes", [[5], [10, 5], [0, 5], [5, 5], [1.5, 3], [10, 999]])
def test_sizes_that_do_not_fit_are_named(fitted, sizes):
    with pytest.raises(InputError, match="sizes"):
        leenet_fx.evaluate(fitted, [data(20)], sizes=sizes)


@pytest.mark.parametrize("policy", [GateThreshold(0.2), MaxProbability(0.5), NeverExit()])
def test_replay_is_what_the_network_does(fitted, policy):
    ee = copy.deepcopy(fitted)
    ee.policy = policy
    batches = [data(40, 3), data(25, 4)]
    live = leenet_fx.evaluate(ee, batches)
    with cache_features(ee, batches) as kept:
        found = summarise(ee, replay(ee, kept))
    for key in ("samples", "accuracy", "plain_accuracy", "relative_flops", "mean_exit"):
        assert getattr(found, key) == pytest.approx(getattr(live, key))
    assert [o.count for o in found.outlets] == [o.count for o in live.outlets]


def test_answers_are_those_of_the_outlet_each_sample_left_at():
    records = SampleRecords(
        labels=torch.tensor([0, 1]),
        predicted=torch.tensor([[0, 1], [0, 1]]),
        confidence=torch.tensor([[0.9, 0.8], [0.7, 0.6]]),
        exit_index=torch.tensor([0, 1]),
    )
    assert records.answered.tolist() == [0, 1]
    assert records.answered_right.tolist() == [True, True]
    assert records.answered_confidence.tolist() == pytest.approx([0.9, 0.6])


def test_a_sweep_is_fit_and_evaluate_for_each_alpha():
    ee = attached()
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    report = [data(60, 8)]
    found = leenet_fx.sweep(
        ee,
        shuffled(),
        report,
        gates=loader(40, 6),
        alphas=[0.2, 0.9],
        seeds=[3, 4],
        epochs={"exits": 3, "gates": 4},
        timed=16,
    )
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())
    assert [(p.seed, p.alpha) for p in found.points] == [(3, 0.2), (3, 0.9), (4, 0.2), (4, 0.9)]
    alone = attached()
    leenet_fx.fit(alone, shuffled(), epochs={"exits": 3, "gates": 0}, seed=3, method="leenet")
    for alpha, point in zip((0.2, 0.9), found.points, strict=False):
        leenet_fx.fit(
            alone,
            loader(40, 6),
            alpha=alpha,
            epochs={"exits": 0, "gates": 4},
            seed=3,
            method="leenet",
        )
        expected = leenet_fx.evaluate(alone, report)
        assert point.accuracy == pytest.approx(expected.accuracy)
        assert point.relative_flops == pytest.approx(expected.relative_flops)
        assert point.shares == pytest.approx([o.share for o in expected.outlets])
        assert point.seconds > 0
    assert found.points[2].seconds is None
    assert found.backbone_accuracy == pytest.approx(expected.backbone_accuracy)
    medians = found.medians()
    assert [row["alpha"] for row in medians] == [0.2, 0.9]
    both = sorted(p.accuracy for p in found.points if p.alpha == 0.9)
    assert medians[1]["accuracy"] == pytest.approx(sum(both) / 2)
    assert (medians[1]["accuracy_low"], medians[1]["accuracy_high"]) == tuple(both)
    assert max(map(len, found.summary().splitlines())) <= 80


def test_a_sweep_trains_a_new_final_classifier():
    ee = attached(num_classes=3)
    found = leenet_fx.sweep(ee, loader(classes=3), [data(30, 8, classes=3)], alphas=[0.5], epochs=2)
    assert len(found.points) == 1


def test_a_sweep_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one alpha"):
        leenet_fx.sweep(attached(), loader(), loader(), alphas=[])


def test_the_first_images_are_timed_not_all():
    ee = attached()
    seen = []
    found = leenet_fx.sweep(
        ee,
        loader(),
        loader(90),
        alphas=[0.5],
        epochs=1,
        timed=20,
        keep=lambda point, network: seen.append((point.alpha, network.policy)),
    )
    assert seen == [(0.5, GateThreshold(0.0))]
    assert found.timed == 20
