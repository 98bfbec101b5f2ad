"""Operating points as the arms of a bandit."""

import math
import statistics
from collections import deque

import pytest
import torch
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, MaxProbability, UnknownNameError
from leenet_fx.calibration.bandit import EXPLORATION, PointBandit, SlidingWindowUcb

N = 600
X = images(N, 3, 16, 16)


@pytest.fixture
def ee():
    """A network with two certified points, and one that promises nothing."""
    network = attached().eval()
    network.policy = MaxProbability(1.0)
    with torch.inference_mode():
        labels = network(X).argmax(1)
    loader = DataLoader(TensorDataset(X, labels), batch_size=200)
    for limit in (0.5, 0.9):
        point = leenet_fx.calibrate(network, loader, max_disagreement=limit)
        assert point.promised
    leenet_fx.calibrate(network, loader, budget=0.5)
    return network


def test_the_largest_bound_over_the_window_is_chosen():
    """The formula, evaluated over all samples at each step."""
    generator = torch.Generator().manual_seed(0)
    ucb, history = SlidingWindowUcb(3, window=40, scale=2.0), deque(maxlen=40)
    for _ in range(200):
        bounds = []
        for arm in range(3):
            own = [reward for chosen, reward in history if chosen == arm]
            if not own:
                bounds.append(math.inf)
                continue
            rate = EXPLORATION * math.log(len(history)) / len(own)
            spread = math.sqrt(2 * statistics.pvariance(own) * rate) + 2 * rate
            bounds.append(statistics.fmean(own) + spread)
        arm = ucb.choose()
        assert bounds[arm] == pytest.approx(max(bounds))
        rewards = (torch.rand(3, generator=generator) + 0.2 * arm).tolist()
        ucb.update(arm, rewards)
        history.extend((arm, reward) for reward in rewards)


def test_the_best_arm_is_found_again_after_a_change():
    generator = torch.Generator().manual_seed(0)
    ucb = SlidingWindowUcb(3, window=1000)
    chosen = []
    for step in range(6000):
        means = (0.2, 0.5, 0.8) if step < 3000 else (0.8, 0.5, 0.2)
        arm = ucb.choose()
        chosen.append(arm)
        ucb.update(arm, [float(torch.rand((), generator=generator) < means[arm])])
    assert chosen[2000:3000].count(2) > 700
    assert chosen[5000:].count(0) > 700


def test_predictions_are_those_of_the_chosen_point_and_rewards_confidence_minus_cost(ee):
    bandit = PointBandit(ee, mu=0.7)
    assert bandit.names == ("max_disagreement=0.5", "max_disagreement=0.9")
    sums = dict.fromkeys(bandit.names, 0.0)
    for batch in X.split(50):
        found = bandit.predict(batch)
        assert ee.policy == ee.operating_points[bandit.last].build_policy()
        expected = ee.predict(batch)
        assert torch.equal(found.logits, expected.logits)
        sums[bandit.last] += float((expected.confidence - 0.7 * expected.cost).double().sum())
    assert sum(bandit.ucb.counts) == N
    assert bandit.ucb.sums == pytest.approx(list(sums.values()), rel=1e-4)
    # Costs alone decide in the end: the cheaper point is used more.
    dear = PointBandit(ee, mu=1e4)
    for _ in range(4):
        for batch in X.split(50):
            dear.predict(batch)
    costs = [ee.operating_points[name].cost.estimate for name in dear.names]
    cheaper = min(range(2), key=costs.__getitem__)
    assert dear.ucb.counts[cheaper] > dear.ucb.counts[1 - cheaper]


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        (None, {"mu": -1.0}, InputError, "mu must be"),
        (None, {"mu": math.nan}, InputError, "mu must be"),
        (None, {"mu": 1.0, "window": 0}, InputError, "window must be at least 1"),
        (["max_disagreement=0.5"], {"mu": 1.0}, InputError, "at least two"),
        (["max_disagreement=0.5", "budget=0.5"], {"mu": 1.0}, InputError, "promises nothing"),
        (["max_disagreement=0.4"], {"mu": 1.0}, UnknownNameError, r"Did you mean 'max_disagree"),
    ],
)
def test_points_that_cannot_be_chosen_are_named(ee, points, options, error, message):
    with pytest.raises(error, match=message):
        PointBandit(ee, points, **options)


def test_points_of_other_weights_are_refused(ee):
    with torch.no_grad():
        next(ee.parameters()).add_(1.0)
    with pytest.raises(InputError, match="calibrate again"):
        PointBandit(ee, mu=1.0)
