"""Which exits pay: chosen from outputs, pruned, and certified on other images."""

import copy
import math
from itertools import combinations

import pytest
import torch
from helpers import attached
from networks import images
from scipy.stats import binom
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import Entropy, InputError, MaxProbability, NeverExit, Patience, PlacementError
from leenet_fx.calibration.cached_outputs import confidences, outputs_of_data
from leenet_fx.calibration.calibrate import certify
from leenet_fx.calibration.exit_subsets import MAX_EXTRA, SubsetCosts, worthwhile
from leenet_fx.calibration.expectation import Question
from leenet_fx.calibration.risks import get_risk
from leenet_fx.calibration.searched import Problem
from leenet_fx.calibration.solvers import exit_indices_at

INF = math.inf
N = 600
X = images(N, 3, 16, 16)


@pytest.fixture(scope="module")
def fitted():
    """A network whose exits have learned from the backbone, and labels that it mostly predicts."""
    ee = attached().eval()
    with torch.inference_mode():
        labels = ee(X).argmax(1)
    wrong = torch.rand(N, generator=torch.Generator().manual_seed(0)) < 0.1
    labels = torch.where(wrong, (labels + 1) % ee.spec.num_classes, labels)
    loader = DataLoader(TensorDataset(X[:300], labels[:300]), batch_size=50)
    leenet_fx.fit(ee, loader, epochs=15, method="shallow-deep", progress=False)
    data = DataLoader(TensorDataset(X, labels), batch_size=200)
    return ee, data, outputs_of_data(ee, data, labelled=True)


@pytest.fixture
def network(fitted):
    return (copy.deepcopy(fitted[0]), *fitted[1:])


def cost_of(ee, policy, outputs, threshold, kept):
    """Mean cost and accuracy, sample by sample, of a network that has only these exits."""
    branches = [b.hidden.flops + b.classify.flops for b in ee.spec.branch_costs]
    total = ee.spec.profile.flops
    places = [ee.spec.profile.candidates[i].flops for i in ee.spec.placement.indices]
    scores = confidences(ee, policy, outputs).tolist()
    predicted = torch.stack([logits.argmax(1) for logits in outputs.logits], 1).tolist()
    spent = right = 0.0
    for row, guesses, label in zip(scores, predicted, outputs.labels.tolist(), strict=True):
        for index in kept:
            spent += branches[index]
            if row[index] >= threshold:
                spent += places[index]
                right += guesses[index] == label
                break
        else:
            spent += total
            right += guesses[-1] == label
    return spent / total / N, right / N


@pytest.mark.parametrize("num_exits", [1, 2, 3])
def test_the_best_exits_of_a_number_are_the_best_of_all_subsets(network, num_exits):
    ee, data, outputs = network
    found = leenet_fx.select_exits(ee, data, num_exits, max_drop=0.1)
    assert len(found.exits) == num_exits
    policy = MaxProbability(0.5)
    cost, accuracy = cost_of(ee, policy, outputs, found.threshold, found.exits)
    assert (found.cost, found.accuracy) == pytest.approx((cost, accuracy))
    assert found.accuracy >= found.backbone_accuracy - 0.1
    for subset in combinations(range(4), num_exits):
        other, reached = cost_of(ee, policy, outputs, found.threshold, subset)
        assert reached < found.backbone_accuracy - 0.1 or other >= found.cost - 1e-9
    pruned = leenet_fx.prune(ee, found.exits)
    pruned.policy = MaxProbability(found.threshold)
    assert float(pruned.predict(X).cost.double().mean()) == pytest.approx(found.cost, abs=1e-6)


def test_exits_that_hardly_save_anything_go_and_it_says_why(network):
    ee, data, outputs = network
    found = leenet_fx.select_exits(ee, data, max_drop=0.1)
    policy = MaxProbability(0.5)
    truth = {
        size: min(
            cost_of(ee, policy, outputs, found.threshold, subset)[0]
            for subset in combinations(range(4), size)
        )
        for size in range(1, 5)
    }
    assert found.cost <= min(truth.values()) + MAX_EXTRA + 1e-9
    assert [choice.kept for choice in found.choices] == [i in found.exits for i in range(4)]
    for choice in found.choices:
        changed = sorted(set(found.exits) ^ {choice.index})
        other = cost_of(ee, policy, outputs, found.threshold, changed)[0]
        sign = 1 if choice.kept else -1
        assert choice.saving == pytest.approx(sign * (other - found.cost))
        if choice.kept and len(found.exits) > 1:
            assert other > min(truth.values()) + MAX_EXTRA - 1e-9
    printed = str(found)
    assert all(name in printed for name in ee.spec.placement.names)
    assert printed.count("stays") == len(found.exits)


def test_a_branch_that_costs_more_than_it_saves_goes(network):
    ee, _, outputs = network

    class Dear(SubsetCosts):
        """The branch of exit 1 costs half of the backbone."""

        def rows(self, exits):
            rows = list(super().rows(exits))
            return tuple(r + 0.5 * (1 in set(exits) and i >= 1) for i, r in enumerate(rows))

    policy = MaxProbability(0.5)
    scores = confidences(ee, policy, outputs)
    assert 1 not in worthwhile(scores, 0.5, Dear(ee, policy, "flops"))
    # Where nobody exits no exit pays, and the one that costs least remains.
    assert len(worthwhile(scores, 2.0, SubsetCosts(ee, policy, "flops"))) == 1


@pytest.mark.parametrize("policy", [MaxProbability(1.0), Entropy(0.0)])
@pytest.mark.parametrize("target", [{"max_drop": 0.2}, {"budget": 0.8}, {"max_disagreement": 0.3}])
def test_calibrate_uses_the_exits_that_pay(network, policy, target):
    ee, data, _ = network
    ee.policy = policy
    point = leenet_fx.calibrate(ee, data, exits="auto", **target)
    if isinstance(ee.policy, NeverExit):
        pytest.fail("nothing was certified")
    used = [abs(t) != INF for t in ee.policy.thresholds]
    prediction = ee.predict(X)
    assert set(prediction.exit_index.tolist()) <= {i for i, u in enumerate(used) if u} | {4}
    assert point.cost.estimate == pytest.approx(float(prediction.cost.double().mean()), abs=1e-6)
    # What an exit saves is what the network costs without it.
    for index, saved in enumerate(point.savings):
        without = copy.deepcopy(ee)
        sign = ee.policy.sign
        without.policy = ee.policy.with_thresholds(
            [sign * INF if i == index else t for i, t in enumerate(ee.policy.thresholds)]
        )
        cost = float(without.predict(X).cost.double().mean())
        assert saved == pytest.approx(cost - point.cost.estimate, abs=1e-6)
    assert "saved by" in str(point)
    listed = leenet_fx.calibrate(ee, data, exits=[0, "blocks.2"], **target)
    assert [abs(t) != INF for t in listed.thresholds] in ([True, False, True, False], [])
    every = leenet_fx.calibrate(ee, data, **target)
    assert all(abs(t) != INF for t in every.thresholds)


def test_networks_of_the_strategy_auto_choose_by_default(network, tmp_path):
    ee, data, _ = network
    names = ee.spec.placement.names
    auto = attached_auto(ee)
    point = leenet_fx.calibrate(auto, data, budget=0.85)
    explicit = leenet_fx.calibrate(ee, data, budget=0.85, exits="auto")
    assert point.thresholds == explicit.thresholds
    leenet_fx.save(auto, tmp_path)
    loaded = leenet_fx.load(tmp_path, attached_auto(ee))
    assert loaded.operating_points[point.name] == point
    assert loaded.spec.placement.names == names
    pruned = leenet_fx.prune(auto)
    assert len(pruned.use(point.name).savings) == pruned.num_exits


def attached_auto(ee):
    """A copy of the network as strategy="auto" would have attached it."""
    from dataclasses import replace

    auto = copy.deepcopy(ee)
    auto.spec = replace(auto.spec, placement=replace(auto.spec.placement, strategy="auto"))
    return auto


def test_the_promise_holds_though_exits_are_chosen(fitted):
    """Calibration sets are drawn from a population whose drop is known at every threshold."""
    ee, _, outputs = fitted
    policy, level, limit, draws = MaxProbability(1.0), 0.8, 0.1, 30
    scores = confidences(ee, policy, outputs)
    losses = get_risk("accuracy-gap").losses(outputs)
    question = Question("point", "max_drop", limit, level, "common", "flops")
    broken = exits_used = 0
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(N, (400,), generator=generator)
        problem = Problem(ee, policy, outputs.select(rows), "flops")
        _, certificate = certify(problem, scores[rows], None, question, False, generator)
        exits = exit_indices_at(scores, certificate.thresholds)
        broken += float(losses.gather(1, exits.unsqueeze(1)).mean()) > limit
        exits_used += certificate.certified
    assert exits_used > draws / 2
    assert broken <= binom.ppf(0.999, draws, 1 - level)


def test_exits_that_depend_on_each_other_are_not_chosen(network):
    ee, data, _ = network
    ee.policy = Patience(2)
    with pytest.raises(InputError, match="depends on other exits"):
        leenet_fx.select_exits(ee, data)
    with pytest.raises(InputError, match="independent of each other"):
        leenet_fx.calibrate(ee, data, budget=0.9, exits="auto")
    ee.policy = MaxProbability(1.0)
    with pytest.raises(InputError, match="itself disables"):
        leenet_fx.calibrate(ee, data, budget=0.9, exits=[0], solver="per-exit")
    searched = leenet_fx.calibrate(attached_auto(ee), data, budget=0.9, solver="eenet")
    assert len(searched.savings) == 4
    # The default takes all of them.
    auto = attached_auto(ee)
    auto.policy = Patience(2)
    point = leenet_fx.calibrate(auto, data, budget=0.95)
    assert len(set(point.thresholds)) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_exits": 5}, PlacementError, "1 to 4 exits"),
        ({"num_exits": 0}, PlacementError, "1 to 4 exits"),
        ({"max_drop": 1.5}, InputError, "max_drop"),
        ({"cost": "joules"}, leenet_fx.UnknownNameError, "cost"),
        ({"cost": "seconds"}, InputError, "profile"),
    ],
)
def test_values_out_of_range(network, options, error, message):
    ee, data, _ = network
    with pytest.raises(error, match=message):
        leenet_fx.select_exits(ee, data, **options)
    with pytest.raises(InputError, match="0 to 3"):
        leenet_fx.calibrate(ee, data, budget=0.9, exits=[7])
    unlabelled = DataLoader(TensorDataset(X), batch_size=200)
    with pytest.raises(InputError, match="labels"):
        leenet_fx.select_exits(ee, unlabelled)
