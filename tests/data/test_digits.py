"""The digits on canvases: splits, placements, difficulty."""

import pytest
import torch

from leenet_fx.data.digits import SPLITS, load_digits, place


def test_splits_are_fixed_and_placements_depend_on_the_seed():
    one, two, other = load_digits(3, views=2), load_digits(3, views=2), load_digits(4, views=2)
    assert sum(SPLITS.values()) == 1797
    for name, size in SPLITS.items():
        assert len(one[name]) == 2 * size
        assert torch.equal(one[name].images, two[name].images)
        assert not torch.equal(one[name].images, other[name].images)
        assert torch.equal(one[name].labels, other[name].labels)
        assert one[name].images.shape[1:] == (1, 32, 32)


def test_digit_of_difficulty_0_is_centred_and_unchanged():
    glyph = torch.zeros(2, 1, 8, 8)
    glyph[:, :, 2:6, 3:5] = 1
    placed = place(glyph, torch.zeros(2), torch.Generator().manual_seed(0))
    assert torch.equal(placed[0], placed[1])
    assert torch.allclose(placed, placed.flip(2), atol=1e-5)
    assert torch.allclose(placed, placed.flip(3), atol=1e-5)
    assert float(placed.max()) == pytest.approx(1, abs=0.01)


def test_distance_from_the_clean_image_grows_with_difficulty():
    glyphs = load_digits(0, views=1)["test"].images[:200, :, ::4, ::4].clamp(0, 1)
    clean = place(glyphs, torch.zeros(200), torch.Generator().manual_seed(1))
    distances = [
        float(
            (place(glyphs, torch.full((200,), d), torch.Generator().manual_seed(1)) - clean).norm()
        )
        for d in (0.2, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
