"""Budgets that a policy cannot reach are an error that names what it can reach."""

import itertools
import math
import re

import pytest
import torch
from helpers import attached, counter, data, votes
from networks import tiny
from torch.utils.data import DataLoader

import leenet_fx
from leenet_fx import InputError, MaxProbability, Patience, Vote, set_budget
from leenet_fx.calibration.solvers import common, exponential

X = data(48, seed=5)[0]


@pytest.fixture(scope="module")
def network():
    ee = attached()
    with torch.no_grad():
        for branch in ee.exits.branches():
            for parameter in branch.classifier_parameters():
                parameter.normal_(0, 1, generator=torch.Generator().manual_seed(parameter.numel()))
    return ee


def costs_of(ee, count):
    """Mean cost of each common number of exits, by counting sample by sample."""
    logits = [at.tolist() for at in ee.all_exits(X).logits[:-1]]
    relative = ee.costs.relative()
    found = {}
    for threshold in (*range(1, ee.num_exits), math.inf):
        spent = 0.0
        for sample in range(len(X)):
            history = [at[sample] for at in logits]
            reached = [count(history[: k + 1]) >= threshold for k in range(len(history))]
            spent += relative[reached.index(True) if True in reached else len(history)]
        found[threshold] = spent / len(X)
    return found


def reachable(message):
    return [
        float(v) for v in re.search(r"between ([\d.e-]+), .* and ([\d.e-]+),", message).groups()
    ]


@pytest.mark.parametrize(("policy", "count"), [(Patience(1), counter), (Vote(1), votes)])
def test_each_reachable_number_of_exits_is_found_and_nothing_cheaper(network, policy, count):
    network.policy = policy
    costs = costs_of(network, count)
    assert len(set(costs.values())) > 2
    for threshold, cost in costs.items():
        found = set_budget(network, DataLoader(X, 20), cost + 1e-6).threshold_at(0)
        assert costs[found] == pytest.approx(costs[threshold])
    lowest = min(costs.values())
    network.policy = policy
    with pytest.raises(InputError, match="a mean cost can only lie between") as error:
        set_budget(network, DataLoader(X, 20), lowest - 1e-3)
    assert reachable(str(error.value)) == pytest.approx([lowest, network.costs.relative()[-1]])
    assert network.policy == policy


def test_the_first_exit_cannot_be_reached_by_patience(network):
    network.policy = Patience(1)
    budget = network.costs.relative()[0]
    for solver in ("common", "exponential"):
        with pytest.raises(InputError, match="the lowest that this policy and solver reach"):
            set_budget(network, DataLoader(X, 20), budget, solver=solver)
    network.policy = MaxProbability(0.9)
    with pytest.raises(InputError, match=f"between {budget!r}, all at the first exit"):
        set_budget(network, DataLoader(X, 20), budget / 2)


def test_exponential_shares_leave_out_the_exits_that_no_sample_can_take(network):
    network.policy = Patience(1)
    relative = network.costs.relative()
    for budget in (relative[3], (relative[3] + relative[4]) / 2, relative[4] - 1e-6):
        policy = set_budget(network, DataLoader(X, 20), budget, solver="exponential")
        assert policy.thresholds[0] == math.inf
        prediction = network.predict(X)
        assert float(prediction.cost.mean()) <= budget + 1e-6


def test_a_single_exit_with_patience_can_only_run_the_whole_network():
    ee = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=X[:1])
    ee.policy = Patience(1)
    full = ee.costs.relative()[-1]
    for solver in ("common", "exponential"):
        with pytest.raises(InputError) as error:
            set_budget(ee, DataLoader(X, 20), 0.9 * full, solver=solver)
        assert reachable(str(error.value)) == pytest.approx([full, full])
        assert set_budget(ee, DataLoader(X, 20), full, solver=solver) == Patience([math.inf])


@pytest.mark.parametrize("solve", [common, exponential])
def test_no_threshold_is_below_the_lowest(solve):
    confidence = torch.randint(0, 4, (40, 3), generator=torch.Generator().manual_seed(1)).float()
    confidence[:, 0] = 0
    costs = [0.2, 0.4, 0.7, 1.0]
    for lowest, budget in itertools.product((1.0, 2.0), (0.75, 0.9, 0.99)):
        thresholds = solve(confidence, costs, budget, lowest=lowest)
        assert min(thresholds) >= lowest
        exits = [
            next((k for k, t in enumerate(thresholds) if row[k] >= t), 3)
            for row in confidence.tolist()
        ]
        assert sum(costs[k] for k in exits) / 40 <= budget + 1e-12


@pytest.mark.parametrize("budget", ["0.5", None, True, math.nan])
def test_a_budget_is_a_number(network, budget):
    network.policy = MaxProbability(0.9)
    with pytest.raises(InputError, match="budget"):
        set_budget(network, DataLoader(X, 20), budget)
