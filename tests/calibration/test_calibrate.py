"""calibrate: operating points, the promises about them, and their files."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, MaxProbability, NeverExit, UnknownNameError
from leenet_fx.calibration.risk_control import samples_needed
from leenet_fx.policies import AlphaConditionedGate, Entropy, GateThreshold, Patience

N = 900
X = images(N, 3, 16, 16)


@pytest.fixture(scope="module")
def fitted():
    """A network whose exits have learned from the backbone, and the backbone's own labels."""
    ee = attached().eval()
    with torch.inference_mode():
        labels = ee(X).argmax(1)
    # A tenth of the labels is wrong, so that the backbone is not perfect.
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(N, generator=generator) < 0.1
    classes = ee.spec.num_classes
    labels = torch.where(wrong, torch.randint(classes, (N,), generator=generator), labels)
    loader = DataLoader(TensorDataset(X[:400], labels[:400]), batch_size=50)
    leenet_fx.fit(ee, loader, epochs=15, method="shallow-deep", progress=False)
    return ee, labels


@pytest.fixture
def network(fitted):
    return copy.deepcopy(fitted[0]), DataLoader(TensorDataset(X, fitted[1]), batch_size=128)


def labels_of(loader):
    return torch.cat([labels for _, labels in loader])


@pytest.mark.parametrize(
    ("target", "policy"),
    [
        ({"max_drop": 0.2}, MaxProbability(1.0)),
        ({"max_drop": 0.2}, Entropy(0.0)),
        ({"max_drop": 0.25}, Patience(3)),
        ({"max_disagreement": 0.3}, MaxProbability(1.0)),
        ({"budget": 0.9}, MaxProbability(1.0)),
        ({"max_drop": 0.2, "solver": "exponential"}, MaxProbability(1.0)),
    ],
)
def test_a_point_says_what_predict_does(network, target, policy):
    ee, loader = network
    ee.policy = policy
    point = leenet_fx.calibrate(ee, loader, confidence=0.9, **target)
    assert point is ee.operating_points[point.name]
    assert type(ee.policy) in (type(policy), NeverExit)
    labels, found = labels_of(loader), ee.predict(X)
    right = found.logits.argmax(1) == labels
    best = ee.predict(X, ee.num_exits).logits.argmax(1)
    assert point.samples == N
    assert point.accuracy.estimate == pytest.approx(float(right.double().mean()))
    assert point.backbone_accuracy == pytest.approx(float((best == labels).double().mean()))
    assert point.drop.estimate == pytest.approx(point.backbone_accuracy - point.accuracy.estimate)
    agreed = float((found.logits.argmax(1) == best).double().mean())
    assert point.disagreement.estimate == pytest.approx(1 - agreed)
    assert point.cost.estimate == pytest.approx(float(found.cost.double().mean()), abs=1e-6)
    shares = found.exit_index.bincount(minlength=ee.num_exits + 1) / N
    assert point.exit_shares == pytest.approx(shares.tolist())
    for interval in (point.accuracy, point.drop, point.cost, point.disagreement):
        assert interval.low <= interval.estimate <= interval.high
    if "budget" in target:
        assert not point.promised
        assert point.cost.estimate <= 0.9
    else:
        assert point.promised
        assert point.bound <= point.limit
        risk = point.drop if "max_drop" in target else point.disagreement
        assert risk.estimate <= point.limit
        assert point.exit_shares[-1] < 1
    assert str(point.samples) in str(point)


def test_the_promise_is_kept_for_each_class(network):
    ee, loader = network
    ee.policy = MaxProbability(1.0)
    whole = leenet_fx.calibrate(ee, loader, max_drop=0.4, confidence=0.8)
    point = leenet_fx.calibrate(ee, loader, max_drop=0.4, confidence=0.8, per_class=True, name="c")
    assert point.cost.estimate >= whole.cost.estimate
    assert set(ee.operating_points) == {"max_drop=0.4", "c"}
    if point.promised:
        labels, found = labels_of(loader), ee.predict(X).logits.argmax(1)
        best = ee.predict(X, ee.num_exits).logits.argmax(1)
        for label in labels.unique():
            of = labels == label
            drop = (best[of] == label).double().mean() - (found[of] == label).double().mean()
            assert drop <= 0.4


def test_too_few_images_disable_early_exits_and_say_how_many_it_takes(network, caplog):
    ee, loader = network
    few = DataLoader(TensorDataset(*(part[:40] for part in loader.dataset.tensors)), batch_size=40)
    ee.policy = MaxProbability(0.5)
    point = leenet_fx.calibrate(ee, few, max_drop=0.01)
    assert ee.policy == NeverExit()
    assert not point.promised
    assert point.bound is None
    assert (point.cost.estimate, point.drop.estimate) == (1.0, 0.0)
    assert point.samples_needed >= samples_needed(0.01, 0.95, limits=(-1.0, 1.0))
    assert f"about {point.samples_needed} images" in caplog.text
    # The kind of policy is still known.
    again = leenet_fx.calibrate(ee, loader, max_drop=0.3)
    assert again.promised
    assert isinstance(ee.policy, MaxProbability)


def test_points_are_saved_loaded_and_used(network, tmp_path):
    ee, loader = network
    original = attached(), ee
    ee.policy = MaxProbability([0.9, math.inf, 0.8, 0.7])
    cheap = leenet_fx.calibrate(ee, loader, budget=0.8, name="cheap")
    safe = leenet_fx.calibrate(ee, loader, max_drop=0.2, name="safe")
    leenet_fx.save(ee, tmp_path, backbone=True)
    loaded = leenet_fx.load(tmp_path, copy.deepcopy(original[0]))
    assert loaded.operating_points == ee.operating_points == {"cheap": cheap, "safe": safe}
    assert loaded.policy == ee.policy
    assert loaded.use("cheap") == cheap
    assert loaded.policy == cheap.build_policy()
    assert torch.equal(loaded.predict(X).exit_index, (ee.use("cheap"), ee.predict(X))[1].exit_index)
    with pytest.raises(UnknownNameError, match="'cheap'"):
        loaded.use("chaep")
    assert loaded.policy == cheap.build_policy()
    # A calibration of the same name replaces the point.
    ee.policy = MaxProbability(0.5)
    leenet_fx.calibrate(ee, loader, budget=0.7, name="cheap")
    assert list(ee.operating_points) == ["safe", "cheap"]


def test_points_of_other_weights_are_refused(network):
    ee, loader = network
    point = leenet_fx.calibrate(ee, loader, budget=0.9)
    twin = copy.deepcopy(ee)
    assert twin.use(point) == point
    with torch.no_grad():
        next(twin.exits.parameters()).add_(0.1)
    for which in (point, point.name):
        with pytest.raises(InputError, match="calibrate again"):
            twin.use(which)
    leenet_fx.fit(ee, loader, epochs=1, method="shallow-deep", progress=False)
    assert ee.operating_points == {}
    with pytest.raises(InputError, match="calibrate again"):
        ee.use(replace(point, fingerprint="0" * 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of max_drop, max_disagreement and budget, got none"),
        ({"max_drop": 0.01, "budget": 0.5}, "got max_drop, budget"),
        ({"max_drop": 0}, "fraction above 0"),
        ({"max_drop": 1.5}, r"one percentage point is 0\.01|One percentage point is 0\.01"),
        ({"max_drop": math.nan}, "fraction above 0"),
        ({"max_drop": True}, "fraction above 0"),
        ({"max_disagreement": -0.1}, "fraction above 0"),
        ({"budget": 1.01}, "at most 1"),
        ({"budget": 0.001}, "budget"),
        ({"budget": "half"}, "fraction above 0"),
        ({"max_drop": 0.1, "confidence": 1.0}, "confidence|level"),
        ({"budget": 0.5, "per_class": True}, "per_class=True is for max_drop"),
        ({"budget": 0.9, "solver": "comon"}, "'common'"),
        ({"budget": 0.9, "cost": "flop"}, "'flops'"),
        ({"budget": 0.9, "cost": "seconds"}, r"leenet_fx\.profile"),
    ],
)
def test_arguments_that_do_not_fit(network, arguments, message):
    ee, loader = network
    ee.policy = MaxProbability(0.75)
    with pytest.raises(leenet_fx.EarlyExitError, match=message):
        leenet_fx.calibrate(ee, loader, **arguments)
    assert ee.policy == MaxProbability(0.75)
    assert ee.operating_points == {}


def test_data_that_do_not_fit(network):
    ee, loader = network
    x, labels = loader.dataset.tensors
    ee.policy = MaxProbability(0.75)

    def calibrate(*tensors, **target):
        return leenet_fx.calibrate(ee, [tensors], **(target or {"max_drop": 0.1}))

    with pytest.raises(InputError, match="have the label 2"):
        calibrate(x[:50], torch.full((50,), 2))
    with pytest.raises(InputError, match="at least 10 calibration images, got 9"):
        calibrate(x[:9], labels[:9])
    with pytest.raises(InputError, match="label"):
        calibrate(x[:50])
    with pytest.raises(InputError, match=r"image|finite|NaN"):
        calibrate(
            torch.where(torch.arange(50).view(-1, 1, 1, 1) == 3, math.nan, x[:50]), labels[:50]
        )
    with pytest.raises(InputError, match="same for all images"):
        calibrate(x[:1].expand(50, -1, -1, -1), labels[:50])
    assert calibrate(x[:50], budget=0.9).accuracy is None
    untrained = attached().eval()
    with pytest.raises(InputError, match="fit first"):
        leenet_fx.calibrate(untrained, loader, max_drop=0.1)


def test_a_point_does_not_depend_on_the_order_of_loaders_or_on_caches(network):
    ee, loader = network
    ee.policy = GateThreshold(0.0)
    first = leenet_fx.calibrate(ee, loader, max_drop=0.3, seed=3)
    with leenet_fx.cache_features(ee, loader) as cache:
        ee.policy = GateThreshold(0.0)
        assert leenet_fx.calibrate(ee, cache, max_drop=0.3, seed=3) == first
    ee.policy = AlphaConditionedGate(0.5)
    with pytest.raises(leenet_fx.EarlyExitError):
        ee.use("nothing")
