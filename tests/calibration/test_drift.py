"""The drift monitor: few false alarms, however often it looks, and drift is found."""

import copy
import itertools
import logging
import math

import pytest
import torch
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import DriftMonitor, InputError, MaxProbability
from leenet_fx.calibration.drift import log_mixture

N = 600
X = images(N, 3, 16, 16)


@pytest.fixture(scope="module")
def calibrated():
    ee = attached().eval()
    with torch.inference_mode():
        labels = ee(X).argmax(1)
    loader = DataLoader(TensorDataset(X, labels), batch_size=50)
    leenet_fx.fit(ee, loader, epochs=4, method="shallow-deep", progress=False)
    leenet_fx.calibrate(ee, loader, budget=0.6, name="cheap")
    return ee


@pytest.fixture
def ee(calibrated):
    return copy.deepcopy(calibrated)


def stream(shares, length, generator):
    weights = torch.tensor(shares, dtype=torch.float64)
    return torch.multinomial(weights, length, replacement=True, generator=generator)


def test_the_mixture_is_a_distribution_over_sequences():
    for length in (1, 2, 5):
        total = 0.0
        for sequence in itertools.product(range(3), repeat=length):
            total += math.exp(log_mixture([sequence.count(k) for k in range(3)]))
        assert total == pytest.approx(1)


@pytest.mark.parametrize("block", [10_000, 150])
def test_false_alarms_are_rare_however_often_it_looks(ee, block):
    generator = torch.Generator().manual_seed(0)
    truth = [0.4, 0.3, 0.15, 0.1, 0.05]
    alarms, streams, confidence = 0, 150, 0.8
    for _ in range(streams):
        monitor = DriftMonitor(ee, confidence=confidence, block=block)
        # The calibration images are a sample of the same distribution.
        met = stream(truth, 300, generator).bincount(minlength=5)
        monitor._expected = met.tolist()
        for part in stream(truth, 600, generator).split(15):
            monitor.update(part)
        alarms += monitor.drifted
    delta = 1 - confidence
    assert alarms / streams <= delta + 3 * math.sqrt(delta * (1 - delta) / streams)


def test_shifted_shares_are_found_and_said_once(ee, caplog):
    generator = torch.Generator().manual_seed(1)
    shares = ee.operating_points["cheap"].exit_shares
    shifted = [share / 2 for share in shares[:-1]]
    shifted.append(1 - sum(shifted))
    monitor = DriftMonitor(ee)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        for part in stream(shares, 2000, generator).split(50):
            assert not monitor.update(part)
        assert not caplog.records
        assert "are compatible with" in str(monitor)
        for part in stream(shifted, 3000, generator).split(50):
            monitor.update(part)
    assert monitor.drifted
    assert len(caplog.records) == 1
    assert "'cheap'" in caplog.text
    monitor.reset()
    assert not monitor.drifted
    assert monitor.samples == 0


def test_drift_after_a_long_quiet_time_is_found_in_a_later_block(ee):
    generator = torch.Generator().manual_seed(2)
    shares = ee.operating_points["cheap"].exit_shares
    shifted = [share / 2 for share in shares[:-1]]
    shifted.append(1 - sum(shifted))
    monitor = DriftMonitor(ee, block=1000)
    monitor.update(stream(shares, 20_000, generator))
    assert not monitor.drifted
    assert monitor.update(stream(shifted, 2000, generator))
    assert monitor.samples == 22_000


def test_it_predicts_as_the_network_and_counts(ee):
    monitor = DriftMonitor(ee, "cheap")
    logits = monitor(X[:100])
    assert torch.equal(logits, ee(X[:100]))
    prediction = monitor.predict(X[100:150])
    assert torch.equal(prediction.exit_index, ee.predict(X[100:150]).exit_index)
    both = torch.cat([ee.predict(X[:100]).exit_index, prediction.exit_index])
    assert monitor.counts == both.bincount(minlength=5).tolist()
    assert monitor.shares == pytest.approx([count / 150 for count in monitor.counts])
    # The calibration images themselves are no drift.
    monitor.predict(X)
    assert not monitor.drifted


def test_blurred_and_noisy_images_move_the_shares(ee):
    generator = torch.Generator().manual_seed(3)
    noisy = X + 3 * torch.randn(X.shape, generator=generator)
    found = []
    for corrupted in (noisy, 0.05 * X, torch.nn.functional.avg_pool2d(X, 9, 1, 4)):
        monitor = DriftMonitor(ee)
        monitor(corrupted)
        found.append(monitor.drifted)
    assert any(found)


def test_what_does_not_fit_is_an_error(ee):
    monitor = DriftMonitor(ee)
    for wrong in (torch.tensor([0.5]), torch.tensor(1), torch.tensor([5]), torch.tensor([-1]), [0]):
        with pytest.raises(InputError, match="exit_index"):
            monitor.update(wrong)
    assert monitor.samples == 0
    assert monitor.update(torch.empty(0, dtype=torch.long)) is False
    with pytest.raises(InputError, match="block"):
        DriftMonitor(ee, block=0)
    with pytest.raises(InputError, match=r"level|confidence"):
        DriftMonitor(ee, confidence=1.0)
    ee.policy = MaxProbability(0.31)
    with pytest.raises(InputError, match="no longer that of operating point 'cheap'"):
        monitor.predict(X[:2])
    with pytest.raises(InputError, match="No operating point is in use"):
        DriftMonitor(ee)
    with pytest.raises(leenet_fx.UnknownNameError, match="'cheap'"):
        DriftMonitor(ee, "chaep")
