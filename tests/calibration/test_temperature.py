"""Temperature scaling."""

import math

import pytest
import torch
from helpers import attached
from networks import images, tiny

import leenet_fx
from leenet_fx import InputError
from leenet_fx.calibration.temperature import fit_temperature
from leenet_fx.evaluation.reliability import expected_calibration_error, reliability_bins
from leenet_fx.objectives import exit_losses
from leenet_fx.policies import policy_from_dict, policy_to_dict


def test_the_fitted_temperature_cancels_a_scale_and_minimizes_the_cross_entropy():
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    fitted = fit_temperature(logits, labels)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fitted, rel=1e-5)

    def loss(temperature):
        return float(exit_losses([logits.double() / temperature], labels).mean())

    assert loss(fitted) < min(loss(fitted * 0.99), loss(fitted * 1.01))


def network_and_images():
    """A network, images, and labels that are drawn from its first exit at a temperature of 3."""
    ee = attached().eval()
    batch = images(600, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for branch in ee.exits.branches():
            for parameter in branch.parameters():
                parameter.normal_(0, 3, generator=generator)
        probabilities = (ee.all_exits(batch).logits[0] / 3).softmax(1)
    ee.policy = leenet_fx.MaxProbability(1.0)
    return ee, batch, probabilities.multinomial(1, generator=generator).squeeze(1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (leenet_fx.MaxProbability, lambda p: p.amax(1)),
        (leenet_fx.Entropy, lambda p: (p * p.log()).sum(1)),
        (leenet_fx.Margin, lambda p: p.sort(1).values[:, -1] - p.sort(1).values[:, -2]),
    ],
)
def test_policies_divide_the_logits_of_an_exit_by_its_temperature(kind, expected):
    logits = torch.randn(20, 5)
    policy = kind(0.5, temperatures=[1.0, 2.5, 0.3])
    for index, temperature in enumerate((1.0, 2.5, 0.3)):
        probabilities = (logits / temperature).softmax(1)
        assert torch.allclose(policy.confidence(index, logits), expected(probabilities), atol=1e-5)
    assert policy_from_dict(policy_to_dict(policy)) == policy
    assert policy.with_confidence(0.3).temperatures == policy.temperatures
    policy.check(2)
    with pytest.raises(InputError, match="has 3 temperatures, but the network has 3 exits"):
        policy.check(3)


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, -2.0], [1.0, math.inf], [math.nan, 1.0], "a"])
def test_temperatures_are_positive_and_finite(values):
    with pytest.raises(InputError):
        leenet_fx.MaxProbability(0.5, temperatures=values)


@pytest.mark.parametrize(
    "target",
    [
        {"max_drop": 0.3},
        {"max_disagreement": 0.5},
        {"budget": 0.8},
        {"budget": 0.8, "solver": "per-exit"},
    ],
)
def test_calibrate_fits_temperatures_which_predict_and_files_keep(target, tmp_path):
    ee, batch, labels = network_and_images()
    loader = [(batch[i : i + 100], labels[i : i + 100]) for i in range(0, 600, 100)]
    leenet_fx.calibrate(ee, loader, temperatures=True, confidence=0.9, **target)
    temperatures = ee.policy.temperatures
    assert temperatures is not None
    assert 1.5 < temperatures[0] < 6
    found = ee.predict(batch)
    divided = found.logits / torch.tensor(temperatures)[found.exit_index].unsqueeze(1)
    assert torch.allclose(found.confidence, divided.softmax(1).amax(1), atol=1e-6)
    leenet_fx.save(ee, tmp_path / "net")
    again = leenet_fx.load(tmp_path / "net", tiny())
    assert again.policy == ee.policy
    assert torch.equal(again.predict(batch).confidence, found.confidence)
    (streamed,) = leenet_fx.predict_stream(ee, [batch])
    assert torch.allclose(streamed.confidence, found.confidence, atol=1e-5)


@torch.no_grad()
def test_a_budget_has_the_temperature_of_lowest_cross_entropy():
    ee, batch, labels = network_and_images()
    leenet_fx.calibrate(ee, [(batch, labels)], temperatures=True, budget=0.8)
    logits, fitted = ee.all_exits(batch).logits[0].double(), ee.policy.temperatures[0]
    loss = [
        torch.nn.functional.cross_entropy(logits / value, labels)
        for value in (0.98 * fitted, fitted, 1.02 * fitted)
    ]
    assert loss[1] < min(loss[0], loss[2])
    assert fitted == pytest.approx(3, rel=0.15)


@torch.no_grad()
def test_reliability_is_shown_before_and_after():
    ee, batch, labels = network_and_images()
    leenet_fx.calibrate(ee, [(batch, labels)], temperatures=True, budget=0.8)
    found = leenet_fx.evaluate(ee, [(batch, labels)])
    outputs = ee.all_exits(batch)
    for row, logits in zip(found.exits, outputs.logits, strict=True):
        confidence, predicted = logits.softmax(1).max(1)
        bins = reliability_bins(confidence, predicted == labels)
        assert row.undivided == bins
    first = found.exits[0]
    assert first.calibration_error < expected_calibration_error(first.undivided) / 2
    assert sum(row.count for row in found.undivided) == 600
    ee.policy = leenet_fx.MaxProbability(0.5)
    assert leenet_fx.evaluate(ee, [(batch, labels)]).undivided == ()


def test_what_cannot_be_tempered_is_named():
    ee, batch, labels = network_and_images()
    with pytest.raises(InputError, match="solver='eenet'"):
        leenet_fx.calibrate(ee, [(batch, labels)], temperatures=True, budget=0.8, solver="eenet")
    with pytest.raises(InputError, match="with labels"):
        leenet_fx.calibrate(ee, [batch], temperatures=True, budget=0.8)
    ee.policy = leenet_fx.GateThreshold()
    with pytest.raises(InputError, match="the policy GateThreshold"):
        leenet_fx.calibrate(ee, [(batch, labels)], temperatures=True, budget=0.8)
    assert ee.policy == leenet_fx.GateThreshold()
