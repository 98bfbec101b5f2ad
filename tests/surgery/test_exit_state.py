"""The policy, and the state dict that holds it."""

import pytest
import safetensors.torch
import torch
from helpers import attached
from networks import images, tiny

import leenet_fx
from leenet_fx import EarlyExitError, GateThreshold, InputError, NeverExit


def test_state_dict_carries_the_policy_and_fits_safetensors(tmp_path):
    ee, twin = attached(), attached(seed=7)
    ee.policy = GateThreshold([0.1, 0.2, 0.3, 0.4])
    file = tmp_path / "exits.safetensors"
    safetensors.torch.save_file(ee.state_dict(), file)
    twin.load_state_dict(safetensors.torch.load_file(file))
    assert twin.policy == ee.policy
    x = images(5, 3, 16, 16)
    assert torch.equal(twin(x), ee(x))
    fewer = leenet_fx.attach(tiny(seed=3), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
    stem = fewer.stem.weight.clone()
    with pytest.raises(InputError, match="4 thresholds, but the network has 1"):
        fewer.load_state_dict(ee.state_dict(), strict=False)
    assert torch.equal(fewer.stem.weight, stem)
    broken = {**ee.state_dict(), "exits._extra_state": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(InputError, match="is no encoded policy"):
        twin.load_state_dict(broken)


def test_policies_that_do_not_fit():
    ee = attached()
    with pytest.raises(InputError, match="2 thresholds, but the network has 4"):
        ee.policy = GateThreshold([0.0, 1.0])
    with pytest.raises(InputError, match="Expected a Policy"):
        ee.policy = "gate"
    for bad in ("x", [], [float("nan")], [True]):
        with pytest.raises(EarlyExitError):
            GateThreshold(bad)
    assert ee.policy == NeverExit()
