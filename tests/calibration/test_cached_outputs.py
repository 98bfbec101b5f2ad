"""Outputs computed from cached features against outputs computed from images."""

import pytest
import torch
from helpers import attached, data, half_leave, loader, shuffled

import leenet_fx
from leenet_fx import InputError, MaxProbability, cache_features
from leenet_fx.calibration import cached_outputs
from leenet_fx.calibration.cached_outputs import (
    cached_exit_indices,
    compute_outputs,
    concatenate,
    confidences,
    outputs_of_all_views,
)


@pytest.fixture(scope="module")
def fitted():
    ee = attached()
    leenet_fx.fit(ee, loader(), epochs=3, method="leenet", cache=True)
    return ee


@pytest.mark.parametrize("limit", [2**30, 0])
def test_outputs_of_cached_features_are_those_of_the_images(fitted, limit, monkeypatch):
    monkeypatch.setattr(cached_outputs, "LIMIT", limit)
    x, labels = data()
    with cache_features(fitted, shuffled()) as cache:
        outputs = compute_outputs(fitted, cache)
        assert (cache.memo[1] is None) == (limit == 0)
    with torch.no_grad():
        expected = fitted.all_exits(x)
    for logits, other in zip(outputs.logits, expected.logits, strict=True):
        assert torch.allclose(logits, other, atol=1e-5)
    assert torch.allclose(outputs.gate_logits(fitted, None), expected.gate_logits, atol=1e-5)
    assert torch.equal(outputs.labels, labels)


def test_exit_indices_and_correctness_are_those_of_predict(fitted):
    x, labels = data()
    half_leave(fitted, x)
    with cache_features(fitted, loader()) as cache:
        outputs = compute_outputs(fitted, cache)
    prediction = fitted.predict(x)
    exit_index = cached_exit_indices(fitted, fitted.policy, outputs)
    assert torch.equal(exit_index, prediction.exit_index)
    assert torch.equal(outputs.is_correct(exit_index), prediction.logits.argmax(1) == labels)


def test_confidences_are_the_largest_class_probabilities(fitted):
    with cache_features(fitted, loader()) as cache:
        outputs = compute_outputs(fitted, cache)
    found = confidences(fitted, MaxProbability(0.5), outputs)
    expected = [logits.softmax(1).amax(1) for logits in outputs.logits[:-1]]
    assert torch.allclose(found, torch.stack(expected, 1))


def test_outputs_are_stored_until_a_classifier_changes():
    ee = attached()
    with cache_features(ee, loader()) as cache:
        first = outputs_of_all_views(ee, cache)
        with torch.no_grad():
            ee.exits[0].gate.linear.weight.add_(1)
        assert outputs_of_all_views(ee, cache) is first
        with torch.no_grad():
            ee.exits[0].head.linear.weight.add_(1)
        second = outputs_of_all_views(ee, cache)
    assert second is not first
    assert not torch.equal(second.logits[0], first.logits[0])


def test_selected_parts_concatenate_to_the_whole(fitted):
    with cache_features(fitted, loader()) as cache:
        outputs = compute_outputs(fitted, cache)
    again = concatenate([outputs.select(slice(40)), outputs.select(torch.arange(40, 96))])
    assert torch.equal(again.labels, outputs.labels)
    pairs = zip(
        (*again.logits, *again.gate_inputs), (*outputs.logits, *outputs.gate_inputs), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_closed_cache_is_an_error(fitted):
    cache = cache_features(fitted, loader())
    cache.close()
    with pytest.raises(InputError, match="closed"):
        compute_outputs(fitted, cache)
