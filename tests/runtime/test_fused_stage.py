"""Stages fused with exits: every composition of parts decides as its parts do."""

import copy
import itertools

import pytest
import torch
from networks import close, images, tiny

import leenet_fx
from leenet_fx import GateThreshold, MaxProbability
from leenet_fx.parts.branches import Branch
from leenet_fx.parts.gates import AlphaGate, get_gate, list_gates
from leenet_fx.policies import AlphaConditionedGate
from leenet_fx.runtime.fused_stage import can_inline


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


LOGIT_GATES = [name for name in list_gates() if get_gate(name).reads == "logits"]


def test_an_exit_that_is_replaced_decides():
    ee = attached(branch_options={"gate": "features"})
    x = images(3, 3, 16, 16)
    ee.policy = MaxProbability([2.0, 0.0, 2.0, 2.0])
    before = ee(x)
    ee.exits[1] = copy.deepcopy(ee.exits[1])
    with torch.no_grad():
        ee.exits[1].head.linear.weight.mul_(-1)
    found = ee.predict(x)
    assert not close(found.logits, before, 1e-3)
    assert close(found.logits, ee.all_exits(x).logits[1], 1e-5)


# Branches are inlined into the function of their stage, so every composition of parts is compared
# with the same parts called one after the other in the graph that computes all exits.
@pytest.mark.parametrize("neck", ["pool", "bnpool", "conv", "flatten"])
@pytest.mark.parametrize(
    ("head", "gate"),
    [
        *itertools.product(("linear", "ensemble", "cascade", "additive"), LOGIT_GATES),
        ("linear", "features"),
        ("means", "confidence"),
        ("projection", None),
    ],
)
def test_every_composition_of_parts_decides_as_its_parts_do(neck, head, gate):
    ee = attached(branch=neck, branch_options={"head": head, "gate": gate})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*ee.exits.parameters(), *ee.exits.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
        for name, buffer in ee.exits.named_buffers():
            if "running_var" in name or "spread" in name:
                buffer.abs_().add_(0.5)
    x = images(6, 3, 16, 16)
    with torch.no_grad():
        logits, gates = ee.all_exits(x)
        confidences = torch.stack([exit.softmax(1).amax(1) for exit in logits[:-1]])
        for scores, by_gate in ((gates.T, True), (confidences, False)):
            middle = scores.quantile(0.5, dim=1)
            at = middle.tolist()
            conditioned = gate is not None and get_gate(gate) is AlphaGate
            by_gates = AlphaConditionedGate(0.5, at) if conditioned else GateThreshold(at)
            policy = by_gates if by_gate else MaxProbability(at)
            check_exits(ee, policy, scores >= middle.unsqueeze(1), logits, x)
    calls = []
    for layer in ee.exits[0].modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda *_: calls.append(1))
    ee(x)
    assert bool(calls) == (head != "means")


def check_exits(ee, policy, exits, logits, x):
    """Compare with `exits` (N, B), whether a sample may exit, and the `logits` of each exit."""
    ee.policy = policy
    exits = torch.cat([exits, torch.ones(1, len(x), dtype=torch.bool)])
    expected = exits.int().argmax(0)
    found = ee.predict(x)
    assert torch.equal(found.exit_index, expected)
    assert close(found.logits, torch.stack(logits)[expected, torch.arange(len(x))], 1e-5)
    fused = [stage.fused.__code__.co_filename for stage in ee.controller(policy).fused_stages]
    assert all(filename.startswith("<leenet_fx stage ") for filename in fused)


def test_a_third_party_branch_is_called_each_time():
    class Dynamic(Branch):
        logit = 1.0

        def __init__(self, site):
            super().__init__(site)
            self.linear = torch.nn.Linear(1, site.num_classes)

        def hidden(self, *pooled, previous_logits=None):
            return pooled[0].flatten(1).mean(1, keepdim=True)

        def gate_logit(self, gate_inputs, alpha=None):
            return gate_inputs[:, 0] * 0 + self.logit

        def classify(self, hidden):
            return self.linear(hidden)

        def gate_parameters(self):
            return []

        def classifier_parameters(self):
            return list(self.linear.parameters())

        def reset_gate(self, generator, probability):
            pass

    ee = attached(branch=Dynamic)
    ee.policy = GateThreshold(0.0)
    assert ee.predict(images(2, 3, 16, 16)).exit_index.tolist() == [0, 0]
    ee.exits[0].logit = -1.0
    assert ee.predict(images(2, 3, 16, 16)).exit_index.tolist() == [1, 1]


def test_only_parts_with_the_code_of_their_class_are_inlined():
    ee = attached()
    branch = ee.exits[0]
    assert can_inline(branch)
    branch.gate.forward = lambda gate_inputs, alpha=None: gate_inputs[:, 0] * 0 + 1e6
    assert not can_inline(branch)
    ee.policy = GateThreshold(1e5)
    assert ee.predict(images(3, 3, 16, 16)).exit_index.tolist() == [0] * 3
