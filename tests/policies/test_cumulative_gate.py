"""JEI-DNN's policy, whose decision reads the gates of earlier exits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import close, images, oracle, tiny

import leenet_fx
from leenet_fx import InputError
from leenet_fx.policies import CumulativeGate, exit_indices, policy_from_dict, policy_to_dict


def recursion(row, threshold):
    """The exit of a sample by Pᵢ = max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)), Aᵢ = Pᵢ / Π_{j<i}(1 − Aⱼ)."""
    passed, total = 1.0, 0.0
    for index, z in enumerate(row):
        g = 1 / (1 + math.exp(-z))
        p = max(0.0, min(g, 1 - total))
        if passed < 1e-6:
            return index
        share = p / passed
        if share >= threshold:
            return index
        passed *= 1 - share
        total += g
    return len(row)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-20, 8), min_size=1, max_size=5), min_size=1, max_size=1),
    st.sampled_from([0.3, 0.5, 0.77]),
)
def test_decisions_are_those_of_the_papers_recursion(rows, threshold):
    # Off the halves, so that no share is exactly at the threshold.
    gate_logits = torch.tensor(rows).float() / 4 + 0.013
    logits = [gate_logits.new_zeros(1, 2)] * (gate_logits.shape[1] + 1)
    found = exit_indices(CumulativeGate(threshold), logits, gate_logits)
    assert found.tolist() == [recursion(row, threshold) for row in gate_logits.tolist()]


def test_where_gates_have_added_up_to_one_all_samples_exit():
    scores = torch.tensor([[40.0, -40.0], [-40.0, -40.0]]).unsqueeze(2)
    assert CumulativeGate().should_exit(1, scores).tolist() == [True, False]
    assert CumulativeGate(math.inf).should_exit(1, scores).tolist() == [False, False]


BATCH = images(32, 3, 16, 16) * torch.linspace(0, 4, 32).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    ee = leenet_fx.attach(tiny(), "every", method="jei-dnn", example_inputs=images(1, 3, 16, 16))
    with torch.no_grad():
        for part in ee.exits:
            part.head.linear.weight.normal_(0, 2)
        # Each gate reads the largest class probability alone, and opens for a fifth of the samples.
        for index, part in enumerate(ee.exits):
            largest = ee.all_exits(BATCH).logits[index].softmax(1).amax(1)
            part.gate.linear.weight.copy_(torch.tensor([[20.0, 0.0, 0.0, 0.0]]))
            part.gate.linear.bias.fill_(-20 * float(largest.quantile(0.8)))
    ee.policy = CumulativeGate()
    return ee.eval()


@pytest.fixture(scope="module")
def expected(network):
    with torch.no_grad():
        rows = network.all_exits(BATCH).gate_logits.tolist()
    exits = [recursion(row, 0.5) for row in rows]
    assert len(set(exits)) >= 3
    return exits


def test_conditional_execution_carries_the_gates_of_earlier_exits(network, expected):
    found = network.predict(BATCH)
    assert found.exit_index.tolist() == expected
    assert close(found.logits, oracle(network, BATCH, found.exit_index), 1e-5)


def test_streams_carry_them_too(network, expected):
    found = list(leenet_fx.predict_stream(network, [BATCH[:20], BATCH[20:]], batch_size=8))
    assert torch.cat([part.exit_index for part in found]).tolist() == expected


def test_costs_are_those_of_gates_and_budgets_are_met(network):
    assert network.costs_for(CumulativeGate()) == network.costs_for(leenet_fx.GateThreshold())
    labels = torch.zeros(len(BATCH), dtype=torch.int64)
    before = network.policy
    try:
        costs = network.costs.relative()
        budget = (costs[0] + costs[-1]) / 2
        leenet_fx.set_budget(network, [(BATCH, labels)], budget)
        assert isinstance(network.policy, CumulativeGate)
        assert float(network.predict(BATCH).cost.mean()) <= budget + 1e-6
    finally:
        network.policy = before


def test_the_policy_is_saved(network, tmp_path):
    assert policy_from_dict(policy_to_dict(CumulativeGate([0.4, 0.6]))) == CumulativeGate(
        [0.4, 0.6]
    )
    leenet_fx.save(network, tmp_path / "saved")
    assert leenet_fx.load(tmp_path / "saved", tiny()).policy == CumulativeGate()
    method = leenet_fx.get_method("jei-dnn", cumulative=True)
    assert method.policy_for(4) == CumulativeGate()
    with pytest.raises(InputError, match="cumulative must be True or False"):
        leenet_fx.get_method("jei-dnn", cumulative=1)
