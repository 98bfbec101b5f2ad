"""Pooling of features, and the grid that a site allows."""

import pytest
import torch
from networks import images

from leenet_fx.parts.exit_site import (
    ExitSite,
    FeatureShape,
    average_pool,
    finest_grid,
    pooled_width,
)

MAPS, TOKENS = FeatureShape((1, 6, 8, 8), 1), FeatureShape((1, 16, 5), 2)


def test_a_feature_shape_describes_one_image():
    assert (MAPS.channels, MAPS.numel, MAPS.is_map, MAPS.size) == (6, 384, True, (8, 8))
    assert (TOKENS.channels, TOKENS.numel, TOKENS.is_map, TOKENS.size) == (5, 80, False, (16,))


@pytest.mark.parametrize(
    ("channels", "side", "classes", "grid"),
    [
        (64, 8, 10, 4),
        (64, 3, 10, 2),
        (64, 1, 10, 1),
        (625, 8, 10, 4),
        (626, 8, 10, 2),
        (2500, 8, 10, 2),
        (2501, 8, 10, 1),
        (64, 8, 1000, 1),
    ],
)
def test_the_grid_is_the_finest_within_100_000_weights(channels, side, classes, grid):
    shape = FeatureShape((1, channels, side, side), 1)
    assert finest_grid(ExitSite((shape,), classes)) == grid


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_maps_are_pooled_to_the_grid_and_tokens_averaged(grid):
    maps, tokens = images(3, 6, 8, 8), images(3, 16, 5, seed=1)
    side = 8 // grid
    cells = maps.reshape(3, 6, grid, side, grid, side).mean((3, 5)).flatten(1)
    expected = torch.cat([cells, tokens.mean(1)], 1)
    pooled = average_pool([maps, tokens], [MAPS, TOKENS], grid)
    assert pooled.shape[1] == pooled_width((MAPS, TOKENS), grid)
    torch.testing.assert_close(pooled, expected)
    last = FeatureShape((1, 8, 8, 6), 3)
    channels_last = average_pool([maps.permute(0, 2, 3, 1), tokens], [last, TOKENS], grid)
    torch.testing.assert_close(channels_last, expected)
