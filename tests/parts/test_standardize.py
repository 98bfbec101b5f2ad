"""Standardisation by statistics of the training images."""

import torch
from networks import images

from leenet_fx.parts.standardize import Standardize


def test_inputs_are_standardized_to_the_given_power_of_their_number():
    inputs = images(200, 9) * torch.arange(1, 10) + 3
    for power in (0.5, 1.0):
        module = Standardize(9, power)
        assert not module.is_fitted
        assert torch.equal(module(inputs), inputs)
        module.fit_statistics(inputs)
        assert module.is_fitted
        outputs = module(inputs)
        assert torch.allclose(outputs.mean(0), torch.zeros(9), atol=1e-5)
        assert torch.allclose(outputs.std(0, correction=0), torch.full((9,), 9**-power), atol=1e-5)


def test_constant_inputs_are_mapped_to_zero():
    inputs = images(20, 2)
    inputs[:, 1] = 7.0
    module = Standardize(2, 1.0)
    module.fit_statistics(inputs)
    assert torch.equal(module(inputs)[:, 1], torch.zeros(20))


def test_loaded_statistics_standardize_like_the_saved_ones():
    module, loaded = Standardize(4, 1.0), Standardize(4, 1.0)
    inputs = images(20, 4)
    module.fit_statistics(inputs)
    loaded.load_state_dict(module.state_dict())
    assert loaded.is_fitted
    assert torch.equal(loaded(inputs), module(inputs))
