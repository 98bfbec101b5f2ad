"""Methods in interrupted runs and in several processes."""

import pytest
import torch
from helpers import data
from method_helpers import (
    attach_for,
    attached_for,
    changed_keys,
    interrupted_loader,
    same_state,
    state,
)
from networks import images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx.training.checkpoint import load_checkpoint

# A phase reads the data once for statistics of inputs, once for those of gates, and once per epoch.
INTERRUPTED = {
    "jei-dnn": ({"period": 3}, 1 + 3 + 2 + 2, ("alternating", 2)),
    "eenets": ({}, 1 + 3 + 2 + 1, ("gates", 1)),
    "leenet-alpha": ({}, 1 + 3 + 1 + 2, ("gates", 2)),
}


@pytest.mark.parametrize("method", INTERRUPTED)
def test_a_resumed_run_ends_like_an_uninterrupted_one(method, tmp_path):
    """Dropout draws from the global generator; BatchNorm of the backbone has running statistics."""
    options, passes, (phase, epoch) = INTERRUPTED[method]
    options = {"method": leenet_fx.get_method(method, **options), "epochs": 3, "seed": 2}
    ends = []
    for allowed in (99, passes):
        ee = attach_for(method, tiny(dropout=0.5))
        torch.manual_seed(7)
        if allowed == passes:
            with pytest.raises(KeyboardInterrupt):
                leenet_fx.fit(ee, interrupted_loader(allowed), out=tmp_path, **options)
            last = load_checkpoint(tmp_path)["history"][-1]
            assert (last["phase"], last["epoch"]) == (phase, epoch)
            ee = attach_for(method, tiny(dropout=0.5))
            torch.manual_seed(99)
            leenet_fx.fit(ee, interrupted_loader(99), out=tmp_path, resume=True, **options)
        else:
            leenet_fx.fit(ee, interrupted_loader(allowed), **options)
        ends.append(ee)
    assert same_state(*ends)
    assert ends[0].policy == ends[1].policy
    loaded = leenet_fx.load(tmp_path, tiny(dropout=0.5))
    assert torch.equal(loaded(images(8, 3, 16, 16)), ends[0](images(8, 3, 16, 16)))


def uneven():
    """Loader whose last batch has one sample, so that one of two processes has none."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(*data(47)), 23, shuffle=True, generator=generator)


def test_two_processes_train_the_same_ensembles_as_one():
    """An unused parameter has no gradient in processes with samples and in those without."""
    ends = []
    for options in ({}, {"accelerator": "cpu", "devices": 2}):
        ee = attached_for("ztw")
        ee.exits[0].head.unused = nn.Parameter(torch.ones(3))
        before = state(ee)
        leenet_fx.fit(ee, uneven(), method="ztw", epochs=2, **options)
        ends.append(state(ee))
        changed = changed_keys(before, ends[-1])
        assert {"exits.3.head.weights", "exits.3.head.ensembles"} <= changed
        assert "exits.0.head.unused" not in changed
    for name, value in ends[0].items():
        assert torch.allclose(value.double(), ends[1][name].double(), atol=2e-5), name
