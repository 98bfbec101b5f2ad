"""Temperature scaling."""

import pytest
import torch

from leenet_fx.calibration.temperature import fit_temperature
from leenet_fx.objectives import (
    exit_losses,
)


def test_the_fitted_temperature_cancels_a_scale_and_minimizes_the_cross_entropy():
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    fitted = fit_temperature(logits, labels)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fitted, rel=1e-5)

    def loss(temperature):
        return float(exit_losses([logits.double() / temperature], labels).mean())

    assert loss(fitted) < min(loss(fitted * 0.99), loss(fitted * 1.01))
