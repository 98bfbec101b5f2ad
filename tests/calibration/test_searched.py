"""Solvers that read classes, through calibrate: thresholds of each exit, and EENet's scores."""

import copy
import json

import pytest
import torch
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import GateThreshold, InputError, UnknownNameError
from leenet_fx.calibration.exit_counts import CountTaker, columns_of
from leenet_fx.calibration.scheduler import ExitScheduler
from leenet_fx.policies import LearnedScore, Patience, policy_from_dict, policy_to_dict

N = 450
X = images(N, 3, 16, 16)


@pytest.fixture(scope="module")
def fitted():
    ee = attached().eval()
    with torch.no_grad():
        # So that the backbone predicts all classes.
        ee.fc.bias -= ee(X).mean(0)
        labels = ee(X).argmax(1)
    loader = DataLoader(TensorDataset(X[:300], labels[:300]), batch_size=50)
    leenet_fx.fit(ee, loader, epochs=10, method="eenet", progress=False)
    return ee, labels


@pytest.fixture
def network(fitted):
    return copy.deepcopy(fitted[0]), DataLoader(TensorDataset(X, fitted[1]), batch_size=100)


def test_the_policy_scores_as_the_scheduler_does():
    scheduler = ExitScheduler(3, 7)
    scheduler.reset(torch.Generator().manual_seed(1))
    for layer in scheduler.score_layers:
        torch.nn.init.uniform_(layer.weight, -0.5, 0.5)
        torch.nn.init.uniform_(layer.bias, 0.1, 0.5)
    scheduler.thresholds = (0.3, 0.4, 0.35)
    policy = scheduler.policy()
    logits = torch.randn(4, 50, 7)
    expected = scheduler.scores(list(logits))
    for index in range(3):
        history = logits[: index + 1].transpose(0, 1)
        torch.testing.assert_close(policy.confidence(index, history), expected[:, index])
        alone = torch.cat([policy.confidence(index, history[i : i + 1]) for i in range(50)])
        assert torch.equal(alone, policy.confidence(index, history))
    stored = policy_from_dict(json.loads(json.dumps(policy_to_dict(policy))))
    assert stored == policy
    assert hash(stored) == hash(policy)
    assert torch.equal(stored.confidence(2, history), policy.confidence(2, history))


@pytest.mark.parametrize("before", [GateThreshold(0.0), Patience(2)])
def test_a_schedule_meets_its_budget_and_is_kept(network, before, tmp_path):
    ee, loader = network
    ee.policy = before
    if isinstance(before, GateThreshold):
        ee.costs_for(before)
    point = leenet_fx.calibrate(ee, loader, budget=0.8, solver="eenet")
    assert isinstance(ee.policy, LearnedScore)
    # It is solved on other images than these.
    assert point.samples == N // 3
    assert point.cost.low <= 0.82
    whole = ee.predict(X)
    assert float(whole.cost.mean()) == pytest.approx(0.8, abs=0.05)
    leenet_fx.save(ee, tmp_path / "saved", backbone=True)
    loaded = leenet_fx.load(tmp_path / "saved", attached())
    assert loaded.policy == ee.policy
    assert torch.equal(loaded.predict(X).exit_index, whole.exit_index)
    assert loaded.use(point.name) == point


@pytest.mark.parametrize("solver", ["per-exit", "eenet"])
def test_promises_are_tested_on_images_that_the_search_has_not_seen(network, solver):
    ee, loader = network
    point = leenet_fx.calibrate(ee, loader, max_drop=0.25, solver=solver)
    assert point.promised
    assert point.exit_shares[-1] < 1
    assert point.drop.estimate <= 0.25
    # Without labels the backbone's predictions are the classes.
    unlabelled = DataLoader(X, batch_size=100)
    again = leenet_fx.calibrate(ee, unlabelled, max_disagreement=0.25, solver=solver)
    assert again.promised


def test_thresholds_of_each_exit_meet_a_budget_under_the_policy_of_the_network(network):
    ee, loader = network
    ee.policy = GateThreshold(0.0)
    point = leenet_fx.calibrate(ee, loader, budget=0.7, solver="per-exit")
    assert type(ee.policy) is GateThreshold
    assert point.cost.low <= 0.7


def test_solvers_that_do_not_fit_are_refused(network):
    ee, loader = network
    with pytest.raises(UnknownNameError, match="'eenet'"):
        leenet_fx.calibrate(ee, loader, budget=0.7, solver="eenets")
    ee.policy = Patience(2)
    with pytest.raises(InputError, match=r"counts exits.*solver='common'"):
        leenet_fx.calibrate(ee, loader, budget=0.9, solver="per-exit")
    assert ee.policy == Patience(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [], "biases": []}, "at exit i"),
        ({"weights": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], "biases": [0.0, 0.0]}, r"\[3, 3\]"),
        ({"weights": [[1.0, 2.0, 3.0]], "biases": [0.0, 0.0]}, "one bias"),
        ({"weights": [[1.0, 2.0, float("nan")]], "biases": [0.0]}, "finite"),
        ({"weights": "no", "biases": [0.0]}, "lists of numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LearnedScore(**arguments)


def test_scores_of_another_network_are_refused(network):
    ee, _ = network
    classes = ee.spec.num_classes
    other = LearnedScore([[0.1] * (classes + 2)], [0.0], 0.5)
    with pytest.raises(InputError, match="fitted to 1 exits"):
        ee.policy = other
    exits = ee.num_exits
    more = LearnedScore([[0.1] * (classes + 3 + i) for i in range(exits)], [0.0] * exits, 0.5)
    ee.policy = more
    with pytest.raises(InputError, match=f"fitted to {classes + 1} classes"):
        ee.predict(X[:2])


@pytest.mark.parametrize("decimals", [1, 8])
def test_counts_in_any_order_are_those_of_each_alone(decimals):
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, 4, generator=generator).round(decimals=decimals)
    columns = columns_of(confidence)
    rows = [*torch.randint(0, 120, (60, 4), generator=generator).tolist(), [0] * 4, [200] * 4]
    together = CountTaker(columns)
    for row in rows:
        thresholds, exiting = together.take(row)
        assert (thresholds, exiting) == CountTaker(columns).take(row)
        leaves = (confidence >= torch.tensor(thresholds)).int().argmax(1)
        inside = (confidence < torch.tensor(thresholds)).all(1)
        found = torch.where(inside, 4, leaves).bincount(minlength=5)
        assert exiting == found.tolist()
