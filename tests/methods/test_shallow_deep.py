"""Shallow-Deep Networks."""

from helpers import loader
from method_helpers import all_equal, attached_for, head_weights

import leenet_fx
from leenet_fx import MaxProbability, NeverExit


def test_shallow_deep_trains_the_same_classifiers_as_leenet():
    ee, other = attached_for("shallow-deep"), attached_for("leenet")
    leenet_fx.fit(
        ee, loader(), method=leenet_fx.get_method("shallow-deep", threshold=0.8), epochs=2
    )
    leenet_fx.fit(other, loader(), method="leenet", epochs={"exits": 2, "gates": 0})
    assert all_equal(head_weights(ee), head_weights(other))
    assert ee.policy == MaxProbability(0.8)
    assert other.policy == NeverExit()
