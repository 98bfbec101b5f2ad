"""Modules that the caller froze stay as they are while the backbone trains."""

import pytest
import torch
from helpers import loader
from networks import TinyNet, images
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn

import leenet_fx


class Stemmed(TinyNet):
    """A stem with BatchNorm and dropout before the blocks."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.Dropout(0.5)
        )

    def forward(self, x):
        return super().forward(self.front(x))


def statistics(module):
    return [buffer.clone() for buffer in module.buffers()]


def same(before, module):
    return all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True))


def train(ee, name="branchynet", recipe="joint"):
    leenet_fx.fit(ee, loader(48), method=leenet_fx.get_method(name, recipe=recipe), epochs=1)


@pytest.mark.parametrize(
    ("method", "recipe"),
    [("branchynet", "joint"), ("shallow-deep", "mixed"), ("eenets", "joint")],
)
@pytest.mark.parametrize("mode", [True, False])
def test_a_stem_frozen_in_evaluation_mode_keeps_its_statistics(method, recipe, mode):
    model = Stemmed().train(mode)
    model.front.eval().requires_grad_(False)
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16), method=method)
    modes = []
    ee.front[3].register_forward_hook(lambda module, *unused: modes.append(module.training))
    frozen, others = statistics(ee.front), statistics(ee.blocks)
    weights = [p.clone() for p in ee.front.parameters()]
    train(ee, method, recipe)
    assert same(frozen, ee.front)
    assert not any(modes)
    assert all(torch.equal(a, b) for a, b in zip(weights, ee.front.parameters(), strict=True))
    assert not same(others, ee.blocks)


def test_a_batch_norm_in_evaluation_mode_keeps_statistics_and_trains_its_weights():
    model = Stemmed().train()
    model.front[1].eval()
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16))
    frozen, weight = statistics(ee.front[1]), ee.front[1].weight.clone()
    train(ee)
    assert same(frozen, ee.front[1])
    assert not torch.equal(weight, ee.front[1].weight)


def test_requires_grad_alone_does_not_freeze_statistics_of_a_network_in_training_mode():
    """As in torch."""
    model = Stemmed().train()
    model.front.requires_grad_(False)
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16))
    frozen = statistics(ee.front)
    train(ee)
    assert not same(frozen, ee.front)


def test_batch_norm_frozen_by_timm_keeps_its_statistics():
    model = freeze_batch_norm_2d(Stemmed())
    model.train()
    ee = leenet_fx.attach(model, [1], example_inputs=images(1, 3, 16, 16))
    frozen, weight = statistics(ee.blocks), ee.blocks[0].conv1.weight.clone()
    train(ee)
    assert same(frozen, ee.blocks)
    assert not torch.equal(weight, ee.blocks[0].conv1.weight)


def test_a_network_in_evaluation_mode_without_frozen_weights_trains_as_a_whole():
    ee = leenet_fx.attach(Stemmed().eval(), [1], example_inputs=images(1, 3, 16, 16))
    front = statistics(ee.front)
    train(ee)
    assert not same(front, ee.front)
    assert not ee.training
