"""LEENet with gates conditioned on the cost weight."""

from itertools import pairwise

import pytest
import torch
from helpers import data, loader
from method_helpers import attached_for
from networks import images

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, NeverExit
from leenet_fx.policies import AlphaConditionedGate


def test_a_larger_alpha_lowers_the_cost():
    ee = attached_for("leenet-alpha")
    leenet_fx.fit(ee, loader(), method="leenet-alpha", epochs={"exits": 6, "gates": 0})
    assert ee.policy == NeverExit()
    with torch.no_grad():
        for part, noise in zip(ee.exits, (4, 2.7, 1.3, 0), strict=True):
            # So that later exits are more accurate.
            weight = part.head.linear.weight
            weight += noise * weight.std() * images(*weight.shape)
    leenet_fx.fit(ee, loader(), method="leenet-alpha", epochs={"exits": 0, "gates": 20}, alpha=0.3)
    assert ee.policy == AlphaConditionedGate(0.3)
    x = data()[0]
    spent = [float(ee.predict(x, alpha=alpha).cost.mean()) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(later < earlier for earlier, later in pairwise(spent))
    assert spent[0] > spent[-1] + 0.1
    assert ee.predict(x, alpha=1.0).exit_index.tolist() == [0] * len(x)
    assert torch.equal(ee.predict(x).exit_index, ee.predict(x, alpha=0.3).exit_index)
    for alpha in (-0.1, 1.1, "high"):
        with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
            ee.predict(x, alpha=alpha)
    for policy in (GateThreshold(0.0), MaxProbability(0.9), NeverExit()):
        ee.policy = policy
        with pytest.raises(InputError, match=r"not conditioned on a cost weight, got alpha=0\.5"):
            ee.predict(x, alpha=0.5)


def test_methods_require_their_heads_and_gates():
    ee = attached_for("leenet")
    with pytest.raises(InputError, match=r"requires branches with gate='alpha', .* gate=None"):
        leenet_fx.fit(ee, loader(), method="leenet-alpha")
    for method, head in (("ztw", "cascade-norm"), ("boostnet", "additive"), ("e2cm", "means")):
        with pytest.raises(InputError, match=f"head='{head}'.*attach with method='{method}'"):
            leenet_fx.fit(ee, loader(), method=method)
