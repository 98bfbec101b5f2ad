"""Methods on images without labels, with NaN, and of absent classes."""

import math

import pytest
import torch
from helpers import data, loader
from method_helpers import (
    JOINT,
    PRESETS,
    all_exits,
    attach_for,
    attached_for,
    changed_keys,
    fitted,
    state,
)
from networks import tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, NeverExit, TrainingError, cache_features


@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"calexnet", "pteenet"}))
def test_methods_with_labels_raise_on_images_without_labels(method):
    ee = attached_for(method)
    before = state(ee)
    x = data(16)[0]
    with pytest.raises(InputError, match=r"train must yield .* labels are absent"):
        leenet_fx.fit(ee, DataLoader(x, 8), method=method, epochs=1)
    if method not in JOINT:
        with (
            cache_features(ee, DataLoader(x, 8), labelled=False) as cached,
            pytest.raises(InputError, match=r"train.*without labels"),
        ):
            leenet_fx.fit(ee, cached, method=method, epochs=1)
    assert not changed_keys(before, state(ee))


@pytest.mark.parametrize("method", PRESETS)
def test_nan_images_raise_and_leave_the_network_unchanged(method):
    """NaN in the first pass, and after the pass for statistics."""
    x, labels = data(20)

    class NanAfter:
        def __init__(self, passes):
            self.passes = passes

        def __iter__(self):
            self.passes -= 1
            return iter([(x if self.passes >= 0 else x * math.nan, labels)])

    for passes in (0, 1):
        ee = attached_for(method).train()
        before = state(ee)
        with pytest.raises(TrainingError, match="NaN in the images"):
            leenet_fx.fit(ee, NanAfter(passes), method=method, epochs=2)
        assert not changed_keys(before, state(ee))
        assert ee.training
        assert ee.policy == NeverExit()


@pytest.mark.parametrize("method", PRESETS)
def test_methods_accept_two_classes_of_which_one_has_no_image(method):
    """Except class means, which need images of each class."""
    x, labels = data(40, classes=2)
    given = TensorDataset(x, labels if method == "e2cm" else torch.zeros_like(labels))
    ee = fitted(method, DataLoader(given, 20), attach_for(method, tiny(classes=2)), epochs=1)
    found = ee.predict(x)
    assert found.logits.shape == (40, 2)
    assert bool(torch.cat([found.logits, found.cost.unsqueeze(1)], 1).isfinite().all())
    assert bool(all_exits(ee, x).gate_logits.isfinite().all())


@pytest.mark.parametrize("method", ["leenet", "eenets", "jei-dnn", "ztw"])
def test_classes_without_images_are_not_predicted(method):
    """Classes 3 and 4 of 5."""
    ee = fitted(method, loader(48, classes=3), epochs=4)
    logits = all_exits(ee, data(24, seed=5, classes=3)[0]).logits
    assert all(bool(at.isfinite().all()) for at in logits)
    assert int(logits[0].argmax(1).max()) <= 2
