"""Warnings of calibration images that are not new, or that are evaluated on."""

import copy
import logging
import re

import pytest
import torch
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, MaxProbability
from leenet_fx.calibration.seen_images import are_the_same, image_statistics

N = 900
X = images(N, 3, 16, 16)


@pytest.fixture(scope="module")
def fitted():
    ee = attached().eval()
    with torch.inference_mode():
        labels = ee(X).argmax(1)
    loader = DataLoader(TensorDataset(X[:300], labels[:300]), batch_size=50)
    leenet_fx.fit(ee, loader, epochs=8, method="shallow-deep", progress=False)
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(N, generator=generator) < 0.3
    # The backbone is right on the first 300 images, as if it had been fitted to them.
    wrong[:300] = False
    labels = torch.where(wrong, (labels + 1) % ee.spec.num_classes, labels)
    return ee, labels


@pytest.fixture
def network(fitted):
    return copy.deepcopy(fitted[0]), fitted[1]


def loader(labels, rows, batch_size=64):
    return DataLoader(TensorDataset(X[rows], labels[rows]), batch_size=batch_size)


SEEN, FIRST, SECOND = slice(0, 300), slice(300, 600), slice(600, 900)


def test_evaluating_on_the_calibration_images_is_said(network, caplog):
    ee, labels = network
    leenet_fx.calibrate(ee, loader(labels, FIRST), budget=0.9, name="cheap")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.evaluate(ee, loader(labels, SECOND))
    assert "operating point" not in caplog.text
    order = torch.arange(300, 600).flip(0)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.evaluate(ee, loader(labels, order, batch_size=37))
    assert caplog.text.count("images that operating point 'cheap' was calibrated on") == 1


def test_calibrating_on_evaluated_images_is_said(network, caplog):
    ee, labels = network
    leenet_fx.calibrate(ee, loader(labels, FIRST), budget=0.9)
    leenet_fx.evaluate(ee, loader(labels, SECOND))
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.calibrate(ee, loader(labels, FIRST), budget=0.8)
    assert "evaluated on" not in caplog.text
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.calibrate(ee, loader(labels, SECOND, batch_size=10), budget=0.8)
    assert caplog.text.count("was evaluated on") == 1


def test_calibration_images_seen_in_training_are_suspected(network, caplog):
    ee, labels = network
    leenet_fx.calibrate(ee, loader(labels, SEEN), budget=0.9, name="seen")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.evaluate(ee, loader(labels, SECOND))
    assert caplog.text.count("probably fitted") == 1
    assert "'seen'" in caplog.text
    caplog.clear()
    ee.policy = MaxProbability(0.123)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.evaluate(ee, loader(labels, SECOND))
    assert "probably fitted" not in caplog.text


def test_images_are_recognised_by_their_confidence_only_if_it_varies():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 500, generator=generator)
    same = image_statistics(first[torch.randperm(500, generator=generator)] + 1e-8)
    assert are_the_same(image_statistics(first), same)
    assert not are_the_same(image_statistics(first), image_statistics(second))
    assert not are_the_same(image_statistics(first), image_statistics(first[:499]))
    assert image_statistics(torch.ones(500)) is None
    assert not are_the_same(None, None)


@pytest.mark.parametrize("target", [{"budget": 0.9}, {"max_disagreement": 0.3}])
def test_one_class_is_said_where_labels_are_not_needed(network, caplog, target):
    ee, labels = network
    one = labels == labels[0]
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.calibrate(ee, loader(labels, one), **target)
    assert f"have the label {int(labels[0])}" in caplog.text


def test_a_promise_that_no_number_of_images_certifies(network, caplog):
    ee, labels = network
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        point = leenet_fx.calibrate(ee, loader(labels, FIRST), max_disagreement=1e-9)
    assert "nor would 1,000,000 images certify one" in caplog.text
    assert not point.promised
    assert isinstance(ee.policy, leenet_fx.NeverExit)


def test_budgets_in_another_unit_name_the_backbones_cost(network):
    ee, labels = network
    total = ee.costs.backbone
    message = re.escape(f"share of the backbone's cost of {total.flops:.3g} FLOPs per image")
    for budget in (total.flops, 1e6, 1.5):
        with pytest.raises(InputError, match=message):
            leenet_fx.calibrate(ee, loader(labels, FIRST), budget=budget)
        with pytest.raises(InputError, match=message):
            leenet_fx.set_budget(ee, loader(labels, FIRST), budget)
    leenet_fx.profile(ee, batch_sizes=(1,), seconds=0.01)
    with pytest.raises(InputError, match=r"share of the backbone's cost of \S+ s per image"):
        leenet_fx.calibrate(ee, loader(labels, FIRST), budget=20, cost="seconds")
    with pytest.raises(InputError, match=r"budget is 0.0001, but a mean cost can only lie"):
        leenet_fx.calibrate(ee, loader(labels, FIRST), budget=1e-4, cost="seconds")
