"""BoostNet."""

import numpy as np
from helpers import array, data
from method_helpers import all_exits, fitted


def test_boostnet_logits_are_sums():
    ee = fitted("boostnet")
    x = data(24, seed=5)[0]
    found = all_exits(ee, x).logits
    stages = list(ee.exit_features(x))[:-1]
    for index, (part, features) in enumerate(zip(ee.exits, stages, strict=True)):
        vectors = array(part.neck(*part.pool(*features)))
        own = vectors @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        before = array(found[index - 1]) if index else 0
        assert np.allclose(array(found[index]) - before, own, atol=1e-4)
