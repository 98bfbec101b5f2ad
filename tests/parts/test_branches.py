"""Branches that users register or pass."""

import math

import numpy as np
import pytest
import torch
from branch_helpers import BATCH, all_exits, attached, logits_at, neck_vectors_at, policy_and_exits
from helpers import array, backbone, data, loader
from networks import close, tiny
from torch import nn

import leenet_fx
from leenet_fx import GateThreshold, InputError, MaxProbability, Patience, UnknownNameError, Vote
from leenet_fx.parts.branches import Branch, get_branch, register_branch


class MaxPoolBranch(Branch):
    """Maximum pooling; the gate reads the mean of the pooled values."""

    def __init__(self, site, power=1.0):
        super().__init__(site)
        self.power = power
        self.head = nn.Linear(site.features[0].channels * 16, site.num_classes)
        self.gate = nn.Linear(1, 1)

    def pool(self, *features):
        return (nn.functional.adaptive_max_pool2d(features[0], 4).flatten(1),)

    def hidden(self, *pooled, previous_logits=None):
        return pooled[0] ** self.power

    def gate_logit(self, gate_inputs, alpha=None):
        return self.gate(gate_inputs.mean(1, keepdim=True)).squeeze(1)

    def classify(self, hidden):
        return self.head(hidden)

    def gate_parameters(self):
        return list(self.gate.parameters())

    def classifier_parameters(self):
        return list(self.head.parameters())

    def reset_gate(self, generator, probability):
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.fill_(math.log(probability / (1 - probability)))


def test_a_registered_third_party_branch_is_trained_saved_and_loaded(tmp_path):
    name = "test-max-pool"
    register_branch(name)(MaxPoolBranch)
    ee = attached(name, power=0.5)
    assert [part.site.position for part in ee.exits] == [0, 1, 2, 3]
    assert [part.power for part in ee.exits] == [0.5] * 4
    # The gate's linear layer has one input.
    assert ee.costs[-1].flops == ee.costs.backbone.flops + 4 * 2
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * 2
    frozen = backbone(ee)
    leenet_fx.fit(ee, loader(), epochs={"exits": 15, "gates": 1}, lr=0.02, method="leenet")
    assert all(torch.equal(frozen[key], value) for key, value in backbone(ee).items())
    x, labels = data(seed=5)
    assert all(
        float((at.argmax(1) == labels).float().mean()) > 0.8 for at in all_exits(ee, x).logits[:-1]
    )
    ee.policy, expected_exits = policy_and_exits(all_exits(ee), GateThreshold)
    assert ee.predict(BATCH).exit_index.tolist() == expected_exits
    leenet_fx.save(ee, tmp_path)
    again = leenet_fx.load(tmp_path, tiny())
    assert torch.equal(again(BATCH), ee(BATCH))
    with pytest.raises(UnknownNameError, match="Did you mean 'power'"):
        attached(name, powr=2.0)
    with pytest.raises(InputError, match="requires branches with head='means'"):
        leenet_fx.fit(attached(name), [data(10)], method="e2cm")


def test_exits_may_have_different_branches():
    """A convolution, a third-party branch, then heads that read previous logits."""

    def branch_for(site):
        parts = {"head": "additive", "gate": "history"}
        return (
            get_branch("conv")(site, gate="features")
            if site.position == 0
            else MaxPoolBranch(site)
            if site.position == 1
            else get_branch("pool")(site, **parts)
        )

    ee = attached(branch_for)
    leenet_fx.fit(ee, loader(), epochs=1, lr=0.01, method="leenet")
    outputs = all_exits(ee)
    for kind in (GateThreshold, MaxProbability, Patience, Vote):
        ee.policy, expected_exits = policy_and_exits(outputs, kind)
        found = ee.predict(BATCH)
        assert found.exit_index.tolist() == expected_exits
        assert close(found.logits, logits_at(outputs, expected_exits), 1e-5)
    # The third exit adds to the logits of the third-party branch.
    own = neck_vectors_at(ee, 2) @ array(ee.exits[2].head.linear.weight).T
    own += array(ee.exits[2].head.linear.bias)
    assert np.allclose(outputs.logits[2] - outputs.logits[1], own, atol=1e-4)
