"""Necks, against numpy and convolutions written out."""

import math

import numpy as np
import pytest
import torch
from branch_helpers import BATCH, BLOCK, EXAMPLE, STEM, attached
from networks import close, images, oracle
from torch import nn

import leenet_fx
from leenet_fx import InputError, MaxProbability
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.parts.necks import ConvNeck, ConvXNeck, MixPoolNeck, NormPoolNeck, StridedConvNeck


@pytest.mark.parametrize(
    ("options", "convolutions", "width"),
    [
        ({"blocks": 0}, [(8, 16, 8)], 64),
        ({"blocks": 1}, [(8, 16, 8), (16, 16, 8)], 64),
        ({"blocks": 2}, [(8, 16, 8), (16, 16, 8), (16, 16, 8)], 64),
        ({"blocks": 1, "size": 16}, [(8, 8, 16)], 32),
        ({"blocks": 1, "size": 4}, [(8, 16, 8), (16, 32, 4), (32, 32, 4)], 128),
        ({"blocks": 0, "channels": 12}, [(8, 12, 8)], 48),
    ],
)
def test_cost_of_convolutions_equals_a_count_by_hand(options, convolutions, width):
    """Convolutions are (in channels, out channels, side of the output map)."""
    ee = attached("conv", gate="features", **options)
    hidden = sum(2 * i * o * 9 * side * side for i, o, side in convolutions)
    gate, head = 2 * width, 2 * width * 5
    backbone_flops = STEM + 4 * BLOCK + 2 * 8 * 5
    for i, row in enumerate(ee.costs[:-1]):
        assert row.flops == STEM + (i + 1) * (BLOCK + hidden + gate) + head
    assert ee.costs[-1].flops == backbone_flops + 4 * (hidden + gate)
    # Each convolution has no bias, and a BatchNorm of two parameters a channel.
    added = sum(i * o * 9 + 2 * o for i, o, _ in convolutions)
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * (added + width + 1)
    stem, block = 3 * 8 * 9 + 8, 2 * (8 * 8 * 9 + 8) + 2 * 8
    first_exit = stem + block + added + (width + 1) + (width * 5 + 5)
    assert ee.costs[0].params == first_exit
    ee.policy = MaxProbability(0.9)
    assert ee.costs[-1].flops == backbone_flops + 4 * (hidden + head)
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * (added + width * 5 + 5)


@pytest.mark.parametrize("axis", [1, 3])
def test_normpool_normalizes_channels_then_averages(axis):
    maps = images(5, 6, 8, 8, seed=2).numpy().astype(np.float64)
    shape = (1, 6, 8, 8) if axis == 1 else (1, 8, 8, 6)
    neck = NormPoolNeck(ExitSite((FeatureShape(shape, axis),), 5), grid=2)
    mean = maps.mean((0, 2, 3), keepdims=True)
    deviation = np.sqrt(maps.var((0, 2, 3), keepdims=True) + 1e-5)
    cells = ((maps - mean) / deviation).reshape(5, 6, 2, 4, 2, 4).mean((3, 5)).reshape(5, -1)
    features = torch.tensor(np.moveaxis(maps, 1, axis), dtype=torch.float32)
    found = neck.train()(*neck.pool(features)).detach().numpy()
    assert np.allclose(found, cells / np.sqrt(24), atol=1e-5)
    assert torch.allclose(neck.norms[0].running_mean, torch.tensor(0.1 * mean.ravel()).float())


def test_convolutions_accept_several_features_and_either_memory_layout():
    torch.manual_seed(0)
    shapes = (FeatureShape((1, 4, 8, 8), 1), FeatureShape((1, 8, 8, 2), 3))
    neck = ConvNeck(ExitSite(shapes, 5)).eval()
    one, other = images(3, 4, 8, 8), images(3, 2, 8, 8, seed=1)
    found = neck(one, other.permute(0, 2, 3, 1))
    convolution, norm = neck.layers[0], neck.layers[1]
    joined = nn.functional.conv2d(torch.cat([one, other], 1), convolution.weight, padding=1)
    expected = (joined / math.sqrt(1 + norm.eps)).relu()
    cells = expected.reshape(3, 6, 2, 4, 2, 4).mean((3, 5)).flatten(1)
    assert close(found, 16 * cells / math.sqrt(24), 1e-4)


def test_convx_keeps_the_resolution_and_averages_over_all_of_it():
    torch.manual_seed(0)
    neck = ConvXNeck(ExitSite((FeatureShape((1, 4, 12, 16), 1),), 5), blocks=2).eval()
    maps = expected = images(3, 4, 12, 16)
    for convolution in (neck.layers[0], neck.layers[3]):
        assert convolution.weight.shape == (4, 4, 3, 3)
        expected = nn.functional.conv2d(expected, convolution.weight, padding=1)
        expected = (expected / math.sqrt(1 + neck.layers[1].eps)).relu()
    assert close(neck(maps), 16 * expected.mean((2, 3)) / math.sqrt(4), 1e-4)
    assert neck.width == 4


def cells(maps, grid):
    """Cells of a grid (B, C, grid, grid, values)."""
    count, channels, side, _ = maps.shape
    parts = maps.reshape(count, channels, grid, side // grid, grid, side // grid)
    return parts.transpose(0, 1, 2, 4, 3, 5).reshape(count, channels, grid, grid, -1)


@pytest.mark.parametrize("axis", [1, 3])
def test_mixpool_mixes_maximum_and_average_by_a_learned_share(axis):
    maps = images(40, 6, 8, 8, seed=2).numpy().astype(np.float64)
    shape = (1, 6, 8, 8) if axis == 1 else (1, 8, 8, 6)
    neck = MixPoolNeck(ExitSite((FeatureShape(shape, axis),), 5), grid=2)
    pooled = neck.pool(torch.tensor(np.moveaxis(maps, 1, axis), dtype=torch.float32))
    neck.fit_statistics(*pooled)
    half = 0.5 * (cells(maps, 2).max(-1) + cells(maps, 2).mean(-1)).reshape(40, -1)
    with torch.no_grad():
        neck.alpha.fill_(0.8)
    mixed = (0.8 * cells(maps, 2).max(-1) + 0.2 * cells(maps, 2).mean(-1)).reshape(40, -1)
    # The statistics are those of the initial share, ½.
    expected = (mixed - half.mean(0)) / half.std(0) / np.sqrt(24)
    assert np.allclose(neck(*pooled).detach().numpy(), expected, atol=1e-4)
    neck(*pooled).square().sum().backward()
    assert float(neck.alpha.grad.abs()) > 0


def test_strided_convolutions_pool_to_a_grid_of_at_most_four_cells():
    torch.manual_seed(0)
    neck = StridedConvNeck(ExitSite((FeatureShape((1, 4, 16, 16), 1),), 5)).eval()
    maps = images(3, 4, 16, 16)
    convolved = nn.functional.conv2d(maps, neck.layers[0].weight, None, 2, 1)
    convolved = (convolved / math.sqrt(1 + neck.layers[1].eps)).relu()
    parts = cells(convolved.detach().numpy(), 4)
    expected = 0.5 * (parts.max(-1) + parts.mean(-1)).reshape(3, -1)
    assert neck.width == 64
    assert np.allclose(neck(maps).detach().numpy(), 16 * expected / 8, atol=1e-4)
    assert StridedConvNeck(ExitSite((FeatureShape((1, 4, 5, 3), 1),), 5)).width == 4 * 4


class TokenBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mlp(self.norm(x)).relu()


class TokenNet(nn.Module):
    """16 tokens of 8 channels."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(TokenBlock(), TokenBlock())
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_necks_accept_tokens_except_convolutions():
    options = {"example_inputs": EXAMPLE, "blocks": ["blocks.*"]}
    for branch in ("pool", "flatten", "bnpool"):
        ee = leenet_fx.attach(TokenNet().eval(), "every", branch=branch, **options)
        index = torch.arange(20) % 3
        found = ee.predict(BATCH, exit_index=index)
        assert close(found.logits, oracle(ee, BATCH, index), 1e-5)
    with pytest.raises(InputError, match=r"reads maps .* got \[\(1, 16, 8\)\]; 'pool' reads any"):
        leenet_fx.attach(TokenNet().eval(), "every", branch="conv", **options)
    for branch in ("convx", "mixpool", "strided"):
        with pytest.raises(InputError, match="'pool' reads any"):
            leenet_fx.attach(TokenNet().eval(), "every", branch=branch, **options)
