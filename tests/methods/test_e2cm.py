"""E2CM."""

import copy

import numpy as np
import pytest
import torch
from helpers import (
    array,
    data,
)
from method_helpers import (
    all_exits,
    attached_for,
    cross_entropies,
    same_state,
)

import leenet_fx


def test_e2cm_computes_class_means_in_one_pass():
    class Counting:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([data(40)])

    train = Counting()
    ee = attached_for("e2cm")
    before = {name: p.detach().clone() for name, p in ee.named_parameters()}
    result = leenet_fx.fit(ee, train, method="e2cm", epochs=7)
    # Statistics of features, class means, and the reported loss.
    assert train.passes == 3
    assert all(torch.equal(before[name], p) for name, p in ee.named_parameters())
    x, labels = data(40)
    losses = cross_entropies([array(at) for at in all_exits(ee, x).logits[:-1]], labels)
    assert result.history[0].train_loss == pytest.approx(sum(losses), rel=1e-4)
    # Means of the neck's vectors for each class.
    stages = list(ee.exit_features(x))[:-1]
    for part, features in zip(ee.exits, stages, strict=True):
        vectors = array(part.neck(*part.pool(*features)))
        means = np.stack([vectors[labels.numpy() == k].mean(0) for k in range(5)])
        assert np.allclose(array(part.head.means), means, atol=1e-6)
    again = copy.deepcopy(ee)
    leenet_fx.fit(again, train, method="e2cm")
    assert same_state(ee, again)
