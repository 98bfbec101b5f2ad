"""Images and exit indices that do not fit."""

import pytest
import torch
from helpers import attached
from networks import images

from leenet_fx import InputError


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 16, 16), r"\(B, C, H, W\), got shape \(3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), "3 channels, got 1"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "float32, got torch.uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), "float32, got torch.float64"),
        ([1, 2], "got list"),
    ],
)
def test_images_that_do_not_fit(bad, message):
    ee = attached()
    for call in (ee, ee.predict, ee.all_exits):
        with pytest.raises(InputError, match=message):
            call(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([0, 1]), "each of 3 images"),
        (torch.tensor([0.0, 1.0, 2.0]), "whole number"),
        (torch.tensor([0, 1, 5]), r"0\.\.4"),
        (torch.tensor([-1, 1, 2]), r"0\.\.4"),
        (torch.tensor([True, False, True]), "whole number"),
        ("a", "whole numbers"),
    ],
)
def test_exit_indices_that_do_not_fit(bad, message):
    with pytest.raises(InputError, match=message):
        attached().predict(images(3, 3, 16, 16), exit_index=bad)


def test_one_index_serves_all():
    assert attached().predict(images(3, 3, 16, 16), exit_index=2).exit_index.tolist() == [2, 2, 2]
