"""Zero Time Waste."""

import numpy as np
import torch
from helpers import array, data, loader, log_softmax
from method_helpers import all_equal, all_exits, changed_keys, fitted, head_weights, state

import leenet_fx


def test_ztw_classifies_by_ensembles_after_they_are_trained():
    x = data(24, seed=5)[0]
    alone = fitted("ztw", epochs={"exits": 2, "ensembles": 0})
    ee = fitted("ztw", epochs={"exits": 2, "ensembles": 3})
    assert all_equal(head_weights(alone), head_weights(ee))
    before = {name for name in state(ee) if "head.weights" in name or "head.bias" in name}
    assert before <= changed_keys(state(alone), state(ee))
    z = [array(at) for at in all_exits(alone, x).logits[:-1]]
    for index, (part, found) in enumerate(zip(ee.exits, all_exits(ee, x).logits, strict=False)):
        weights = np.exp(array(part.head.weights))
        mixed = sum(w * log_softmax(at) for w, at in zip(weights, z, strict=False)) / (index + 1)
        assert np.allclose(found, mixed + array(part.head.bias), atol=1e-4)
    # Retraining the classifiers disables the ensembles.
    leenet_fx.fit(ee, loader(), method="ztw", epochs={"exits": 1, "ensembles": 0})
    part = ee.exits[0]
    features = next(ee.exit_features(x))
    own = part.head.linear(part.neck(*part.pool(*features)))
    assert torch.allclose(ee.all_exits(x).logits[0], own, atol=1e-5)
