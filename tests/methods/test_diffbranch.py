"""Differentiable branching."""

import math

import pytest
from helpers import array, data
from method_helpers import all_exits, fitted, softmax

from leenet_fx.objectives import soft_probabilities


def test_soft_probabilities_are_the_mixture_over_exits():
    ee = fitted("diffbranch")
    outputs = all_exits(ee, data(24, seed=5)[0])
    found = soft_probabilities(*outputs)
    for sample in range(24):
        mixed = softmax(array(outputs.logits[-1][sample : sample + 1]))[0]
        for i in reversed(range(4)):
            g = 1 / (1 + math.exp(-outputs.gate_logits[sample, i].item()))
            p = softmax(array(outputs.logits[i][sample : sample + 1]))[0]
            mixed = g * p + (1 - g) * mixed
        assert found[sample].tolist() == pytest.approx(mixed.tolist(), abs=1e-5)
        assert sum(mixed) == pytest.approx(1)
