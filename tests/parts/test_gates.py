"""Gates, against their formulas."""

import numpy as np
import pytest
import torch
from branch_helpers import BATCH, all_exits, attached, randomized, thresholds_and_exits
from helpers import array, entropy, first, log_softmax
from networks import tiny

from leenet_fx import GateThreshold
from leenet_fx.parts.gates import uncertainty
from leenet_fx.policies import AlphaConditionedGate


def statistics(z):
    """Largest probability, margin, entropy, log-odds of the largest."""
    p = np.exp(log_softmax(z))
    ranked = np.sort(p, 1)
    best = ranked[:, -1]
    return np.stack([best, best - ranked[:, -2], entropy(p), np.log(best / (1 - best))], 1)


def history_inputs(ee, outputs):
    """Inputs of `history` gates at each exit, from the outputs of all exits."""
    p = [np.exp(log_softmax(array(at))) for at in outputs.logits]
    gate_inputs = []
    for index in range(ee.num_exits):
        agreement, average = np.zeros(len(p[0])), np.zeros(len(p[0]))
        if index:
            agreement = (p[index] * p[index - 1]).sum(1)
            average = sum(p[: index + 1]).max(1) / (index + 1)
        own = statistics(array(outputs.logits[index]))
        gate_inputs.append(np.concatenate([own, agreement[:, None], average[:, None]], 1))
    return gate_inputs


def standardized(gate, gate_inputs):
    return (gate_inputs - array(gate.inputs.mean)) * array(gate.inputs.scale)


def test_confidence_gates_read_uncertainty_statistics():
    ee = randomized(attached(gate="confidence"))
    outputs = all_exits(ee)
    for index, part in enumerate(ee.exits):
        gate_inputs = statistics(array(outputs.logits[index]))
        linear = part.gate.linear
        expected = (
            standardized(part.gate, gate_inputs) @ array(linear.weight[0]) + linear.bias.item()
        )
        assert np.allclose(outputs.gate_logits[:, index], expected, atol=1e-3)
        # The standardisation was fitted to this batch.
        assert np.allclose(standardized(part.gate, gate_inputs).std(0), 1 / 4, atol=1e-3)


def test_history_gates_read_the_agreement_of_exits():
    ee = randomized(attached(gate="history"))
    outputs = all_exits(ee)
    for index, (part, gate_inputs) in enumerate(
        zip(ee.exits, history_inputs(ee, outputs), strict=True)
    ):
        linear = part.gate.linear
        expected = (
            standardized(part.gate, gate_inputs) @ array(linear.weight[0]) + linear.bias.item()
        )
        assert np.allclose(outputs.gate_logits[:, index], expected, atol=1e-3)


def alpha_gate_logits(gate, gate_inputs, alphas):
    """a(α)·s + b(α), both quadratic in 2α − 1."""
    t = 2 * np.asarray(alphas) - 1
    weight, bias = array(gate.linear.weight), array(gate.linear.bias)
    s = standardized(gate, gate_inputs)
    a = weight[0] + t[:, None] * weight[1] + t[:, None] ** 2 * weight[2]
    return (a * s).sum(1) + bias[0] + t * bias[1] + t**2 * bias[2]


def test_alpha_gates_are_quadratic_in_each_samples_alpha():
    ee = randomized(attached(gate="alpha"))
    outputs = all_exits(ee)
    alphas = torch.linspace(0, 1, 20)
    for index, (part, gate_inputs) in enumerate(
        zip(ee.exits, history_inputs(ee, outputs), strict=True)
    ):
        given = torch.tensor(gate_inputs).float()
        with torch.no_grad():
            found = part.gate_logit(given, alphas)
            halfway = part.gate_logit(given)
        assert np.allclose(found, alpha_gate_logits(part.gate, gate_inputs, alphas), atol=1e-3)
        assert np.allclose(
            halfway, alpha_gate_logits(part.gate, gate_inputs, [0.5] * 20), atol=1e-3
        )
        assert np.allclose(outputs.gate_logits[:, index], halfway, atol=1e-3)


def test_predict_passes_alpha_to_the_gates():
    ee = randomized(attached(gate="alpha"))
    gate_inputs = history_inputs(ee, all_exits(ee))
    distinct = set()
    for alpha in (0.0, 0.3, 1.0):
        values = np.stack(
            [
                alpha_gate_logits(part.gate, at, [alpha] * 20)
                for part, at in zip(ee.exits, gate_inputs, strict=True)
            ],
            1,
        )
        thresholds, expected_exits = thresholds_and_exits(values.tolist())
        ee.policy = AlphaConditionedGate(0.9, thresholds)
        assert ee.predict(BATCH, alpha=alpha).exit_index.tolist() == expected_exits
        assert ee.policy == AlphaConditionedGate(0.9, thresholds)
        distinct.add(tuple(expected_exits))
    assert len(distinct) == 3


@pytest.mark.parametrize("gate", ["confidence", "history", "features", "alpha"])
@pytest.mark.parametrize("classes", [1, 2])
def test_gates_are_finite_for_one_and_two_classes(gate, classes):
    ee = randomized(attached(model=tiny(classes=classes), gate=gate))
    outputs = all_exits(ee)
    assert all(at.shape == (20, classes) for at in outputs.logits)
    assert bool(outputs.gate_logits.isfinite().all())
    ee.policy = AlphaConditionedGate(0.5) if gate == "alpha" else GateThreshold()
    expected_exits = [
        first([gate_logit >= 0 for gate_logit in row]) for row in outputs.gate_logits.tolist()
    ]
    assert ee.predict(BATCH).exit_index.tolist() == expected_exits


def test_uncertainty_of_one_and_two_classes():
    z = torch.tensor([[-2.0], [3.0]])
    assert uncertainty(z, 1).tolist() == [[1, 1, 0, 0]] * 2
    z = torch.tensor([[0.5, 2.0], [1.0, 1.0]])
    assert np.allclose(uncertainty(z, 2), statistics(array(z)), atol=1e-6)
