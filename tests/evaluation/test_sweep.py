"""sweep against fit and evaluate for each α."""

import pytest
import torch
from helpers import attached, data, loader, shuffled

import leenet_fx
from leenet_fx import GateThreshold, InputError


def test_sweep_agrees_with_fit_and_evaluate_for_each_alpha():
    ee = attached()
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    test = [data(60, 8)]
    found = leenet_fx.sweep(
        ee,
        shuffled(),
        test,
        calibration=loader(40, 6),
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
        expected = leenet_fx.evaluate(alone, test)
        assert point.accuracy == pytest.approx(expected.accuracy)
        assert point.relative_flops == pytest.approx(expected.relative_flops)
        assert point.shares == pytest.approx([row.share for row in expected.exits])
        assert point.seconds > 0
    assert found.points[2].seconds is None
    assert found.backbone_accuracy == pytest.approx(expected.backbone_accuracy)
    assert found.exits == tuple(row.name for row in expected.exits)
    assert found.exit_flops == pytest.approx([row.relative_flops for row in expected.exits])
    medians = found.medians()
    assert [row["alpha"] for row in medians] == [0.2, 0.9]
    both = sorted(p.accuracy for p in found.points if p.alpha == 0.9)
    assert medians[1]["accuracy"] == pytest.approx(sum(both) / 2)
    assert (medians[1]["accuracy_low"], medians[1]["accuracy_high"]) == tuple(both)
    assert max(map(len, found.summary().splitlines())) <= 80


def test_sweep_trains_a_new_final_classifier():
    ee = attached(num_classes=3)
    train, test = loader(classes=3), [data(30, 8, classes=3)]
    untrained = leenet_fx.evaluate(ee, test).backbone_accuracy
    found = leenet_fx.sweep(ee, train, test, alphas=[0.5], epochs=8)
    assert len(found.points) == 1
    assert found.backbone_accuracy > untrained


def test_sweep_needs_an_alpha_and_a_last_phase_of_gates():
    with pytest.raises(InputError, match="at least one alpha"):
        leenet_fx.sweep(attached(), loader(), loader(), alphas=[])
    with pytest.raises(InputError, match="last phase of method 'shallow-deep'"):
        leenet_fx.sweep(attached(), loader(), loader(), method="shallow-deep")


def test_only_the_first_images_are_timed():
    networks = []
    found = leenet_fx.sweep(
        attached(),
        loader(),
        loader(90),
        alphas=[0.5],
        epochs=1,
        timed=20,
        on_point=lambda point, network: networks.append((point.alpha, network.policy)),
    )
    assert networks == [(0.5, GateThreshold(0.0))]
    assert found.timed == 20
    assert found.samples == 90
