"""Intervals cover the truth as often as they say."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from leenet_fx.calibration.intervals import paired_drop_interval, ratio_interval


def test_the_interval_of_a_drop_covers_it():
    generator = torch.Generator().manual_seed(0)
    for samples, right, lost, gained in ((200, 0.9, 0.05, 0.02), (1000, 0.7, 0.01, 0.0)):
        covered = 0
        for _ in range(400):
            u, v = torch.rand(2, samples, generator=generator)
            before = u < right
            after = torch.where(before, v >= lost / right, v < gained / (1 - right))
            found = paired_drop_interval(before, after, 0.95)
            assert found.estimate == pytest.approx(
                float(before.double().mean() - after.double().mean()), abs=1e-12
            )
            covered += found.low <= lost - gained <= found.high
        # At least 95 % within three standard deviations of 400 draws.
        assert covered / 400 >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


def test_equal_answers_leave_some_doubt():
    same = torch.ones(50, dtype=torch.bool)
    found = paired_drop_interval(same, same, 0.95)
    assert found.low < found.estimate == 0 < found.high
    z = stats.norm.ppf(0.975)
    assert found.high == pytest.approx(z / 52)


def test_the_interval_of_a_ratio_covers_it():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        below = rng.gamma(20, 0.05, 40)
        above = 0.6 * below * rng.gamma(50, 1 / 50, 40)
        found = ratio_interval(above, below, 0.95)
        assert found.low <= found.estimate <= found.high
        covered += found.low <= 0.6 <= found.high
    assert covered / 200 >= 0.87
    assert ratio_interval([2.0], [4.0], 0.95).low == ratio_interval([2.0], [4.0], 0.95).high == 0.5
