"""Copies of module trees, beside those of copy.deepcopy."""

import copy

import pytest
import torch
from torch import nn

from leenet_fx.errors import TraceError
from leenet_fx.graph.cloning import clone


class Awkward(nn.Module):
    """Tied weights, a list of modules, a reference to its parent, and attributes of many types."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.unregistered = [self.first, nn.Conv2d(1, 1, 1)]
        self.second.parent = [self]
        self.sizes = (2, [3, 4])
        self.table = self.same_table = {"a": {1, 2}, (1, 2): [None]}
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.plain = torch.arange(3)


class CustomState(nn.Linear):
    """Leaves an attribute out of its copies."""

    def __getstate__(self):
        return {key: value for key, value in super().__getstate__().items() if key != "memory"}


class CustomCopy(nn.Linear):
    """Copies itself."""

    def __deepcopy__(self, memo):
        copied = CustomCopy(self.in_features, self.out_features)
        copied.load_state_dict(self.state_dict())
        copied.is_copy = True
        return copied


def test_a_copy_is_that_of_deepcopy():
    model = Awkward().eval()
    copied, expected = clone(model, "copy"), copy.deepcopy(model)
    assert repr(copied) == repr(expected)
    assert not any(module.training for module in copied.modules())
    assert vars(copied).keys() == vars(expected).keys()
    state = copied.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value)
        assert state[key].data_ptr() != value.data_ptr()
    assert copied.second.weight is copied.first.weight is not model.first.weight
    assert copied.unregistered[0] is copied.first
    assert copied.unregistered[1] is not model.unregistered[1]
    assert copied.second.parent[0] is copied
    assert copied.sizes == model.sizes
    assert copied.sizes[1] is not model.sizes[1]
    assert copied.table is copied.same_table is not model.table
    assert copied.table["a"] == {1, 2}
    assert copied.table["a"] is not model.table["a"]
    assert copied.plain is not model.plain
    assert "mask" not in state
    assert torch.equal(copied.mask, model.mask)


def test_hooks_of_a_copy_are_its_own():
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, args, output: output + 1)
    copied = clone(model, "copy")
    x = torch.rand(1, 2)
    assert torch.equal(copied(x), model(x))
    copied._forward_hooks.clear()
    assert len(model._forward_hooks) == 1


@pytest.mark.parametrize("tensors", ["share", "meta"])
def test_tensors_are_shared_or_on_the_meta_device(tensors):
    model = Awkward()
    copied = clone(model, tensors)
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        assert parameter.is_meta if tensors == "meta" else parameter is original
        assert parameter.shape == original.shape
    assert copied.second.weight is copied.first.weight


def test_modules_that_define_their_copies_are_copied_as_they_say():
    model = nn.Sequential(CustomState(2, 2), CustomCopy(2, 2))
    model[0].memory = object()
    copied = clone(model, "copy")
    assert not hasattr(copied[0], "memory")
    assert copied[1].is_copy
    x = torch.rand(1, 2)
    assert torch.equal(copied(x), model(x))


def test_what_cannot_be_copied_is_named():
    model = nn.Linear(1, 1)
    model.lines = (line for line in ())
    with pytest.raises(TraceError, match=r"Linear cannot be copied: .*generator"):
        clone(model, "copy")
