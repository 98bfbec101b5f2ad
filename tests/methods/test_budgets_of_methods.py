"""Budgets for the policies that methods train for."""

import math

import numpy as np
import pytest
import torch
from helpers import array, data, entropy, first, loader
from method_helpers import all_exits, attached_for, fitted, softmax
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import (
    Entropy,
    GateThreshold,
    InputError,
    MaxProbability,
    NeverExit,
    Patience,
    UnknownNameError,
    cache_features,
    set_budget,
)
from leenet_fx.policies import AlphaConditionedGate


def confidence(policy, outputs):
    """(samples, exits) by the formula of each policy."""
    logits = [array(at) for at in outputs.logits[:-1]]
    if isinstance(policy, GateThreshold):
        return array(outputs.gate_logits)
    if isinstance(policy, Entropy):
        return np.stack([-entropy(softmax(at)) for at in logits], 1)
    return np.stack([softmax(at).max(1) for at in logits], 1)


def mean_cost(found, threshold, costs):
    expected = [first([value >= threshold for value in row]) for row in found.tolist()]
    return sum(costs[at] for at in expected) / len(expected)


@pytest.fixture(scope="module")
def uncertain():
    """A network whose exits are uncertain about many images, and images it was not trained on."""
    ee = attached_for("leenet")
    leenet_fx.fit(ee, loader(), epochs=2, lr=0.003, method="leenet")
    return ee, data(48, seed=5)[0]


@pytest.mark.parametrize("policy", [MaxProbability(0.9), Entropy(0.5), GateThreshold(0.0)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_common_threshold_spends_as_much_of_the_budget_as_it_can(uncertain, policy, share):
    """The next higher of the observed confidences as a threshold would exceed the budget."""
    ee, x = uncertain
    ee.policy = policy
    costs = ee.costs.relative()
    budget = costs[0] + share * (costs[-1] - costs[0])
    found = set_budget(ee, DataLoader(x, 20), budget)
    assert found is ee.policy
    assert type(found) is type(policy)
    assert len(set(found.thresholds)) == 1
    assert float(ee.predict(x).cost.mean()) <= budget + 1e-6
    confidences = confidence(policy, all_exits(ee, x))
    threshold = found.sign * found.thresholds[0]
    assert mean_cost(confidences, threshold - 1e-6, costs) <= budget
    higher = confidences[confidences > threshold + 1e-6]
    assert mean_cost(confidences, higher.min() if len(higher) else math.inf, costs) > budget


def test_a_budget_of_the_full_cost_disables_early_exits(uncertain):
    ee, x = uncertain
    ee.policy = MaxProbability(0.9)
    policy = set_budget(ee, DataLoader(x, 20), ee.costs.relative()[-1])
    assert policy.thresholds == (math.inf,) * 4
    assert ee.predict(x).exit_index.tolist() == [4] * 48


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_exponential_exit_shares_stay_within_the_budget(share):
    ee = fitted("msdnet", epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    budget = costs[0] + share * (costs[-1] - costs[0])
    policy = set_budget(ee, DataLoader(x, 20), budget, solver="exponential")
    assert len(policy.thresholds) == 4
    found = ee.predict(x)
    # An exit with an infinite threshold is no longer evaluated.
    costs = ee.costs.relative()
    spent = [costs[at] for at in found.exit_index.tolist()]
    assert float(found.cost.mean()) == pytest.approx(sum(spent) / 48, rel=1e-5)
    assert sum(spent) / 48 <= budget + 1e-6
    # Little of the budget is unused: the resolution is one sample at the final classifier.
    assert sum(spent) / 48 > budget - 0.15


def test_a_budget_sets_the_patience():
    ee = fitted("pabee", epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    for budget in (costs[2], costs[3], costs[4]):
        policy = set_budget(ee, DataLoader(x, 20), budget)
        assert isinstance(policy, Patience)
        assert float(ee.predict(x).cost.mean()) <= budget + 1e-6


def test_a_budget_preserves_alpha():
    ee = fitted("leenet-alpha", alpha=0.2, epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    budget = (costs[0] + costs[-1]) / 2
    policy = set_budget(ee, DataLoader(x, 20), budget)
    assert policy.alpha == 0.2
    assert isinstance(policy, AlphaConditionedGate)
    assert float(ee.predict(x).cost.mean()) <= budget + 1e-6
    # A higher threshold at this α would exceed the budget.
    ee.policy = AlphaConditionedGate(0.2, policy.thresholds[0] + 1e-4)
    assert float(ee.predict(x).cost.mean()) > budget


def test_budgets_read_no_labels(uncertain):
    ee, x = uncertain
    found = []
    for train in (
        DataLoader(x, 20),
        DataLoader(TensorDataset(x, torch.full((48,), 99)), 20),
        [x[:30], x[30:]],
    ):
        ee.policy = MaxProbability(0.9)
        found.append(set_budget(ee, train, 0.6))
    with cache_features(ee, DataLoader(x, 20), labelled=False) as cached:
        ee.policy = MaxProbability(0.1)
        found.append(set_budget(ee, cached, 0.6))
    thresholds = [policy.thresholds[0] for policy in found]
    assert thresholds == pytest.approx([thresholds[0]] * 4, abs=1e-6)


def test_impossible_budgets_raise(uncertain):
    ee, x = uncertain
    ee.policy = MaxProbability(0.9)
    first_exit = ee.costs.relative()[0]
    for budget in (first_exit - 1e-3, -1.0, math.nan):
        with pytest.raises(InputError, match="a mean cost can only lie between"):
            set_budget(ee, DataLoader(x, 20), budget)
    assert ee.policy == MaxProbability(0.9)
    with pytest.raises(UnknownNameError, match="Did you mean 'exponential'"):
        set_budget(ee, DataLoader(x, 20), 0.6, solver="exponental")
    with pytest.raises(UnknownNameError, match="Did you mean 'flops'"):
        set_budget(ee, DataLoader(x, 20), 0.6, cost="flop")
    ee.policy = NeverExit()
    with pytest.raises(InputError, match="no thresholds: fit first"):
        set_budget(ee, DataLoader(x, 20), 0.6)
