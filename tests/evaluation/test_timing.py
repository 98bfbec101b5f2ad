"""Times on test sets of growing size."""

import numpy as np
import pytest
import torch

from leenet_fx import InputError
from leenet_fx.evaluation.timing import BatchTimer, check_sizes


def timer(batch_sizes, adaptive, backbone):
    measured = BatchTimer(torch.device("cpu"))
    measured.batch_sizes = batch_sizes
    measured.seconds = {"ee": adaptive, "backbone": backbone}
    return measured


def test_times_of_the_first_images_and_their_slopes():
    timing = timer([10, 20, 10], [1.0, 4.0, 1.0], [2.0, 4.0, 2.0]).timing([5, 20, 40])
    # Part of a batch counts with its share of the batch's time.
    assert timing.seconds == pytest.approx((0.5, 3.0, 6.0))
    assert timing.backbone_seconds == pytest.approx((1.0, 4.0, 8.0))
    assert timing.slope == pytest.approx(np.polyfit(timing.sizes, timing.seconds, 1)[0])
    assert timing.backbone_slope == pytest.approx(0.2)
    assert timing.ratio == timing.slope / timing.backbone_slope


def test_both_networks_are_timed_on_every_batch():
    measured = BatchTimer(torch.device("cpu"))
    images = torch.arange(3.0)
    assert torch.equal(measured.time("ee", lambda x: x + 1, images), images + 1)
    assert len(measured.seconds["ee"]) == 1
    assert measured.total("ee") > 0
    assert measured.total("backbone") == 0


@pytest.mark.parametrize("sizes", [[5], [10, 5], [0, 5], [5, 5], [1.5, 3], [True, 3]])
def test_invalid_sizes_raise(sizes):
    with pytest.raises(InputError, match="sizes must be"):
        check_sizes(sizes)


def test_more_images_than_there_are_raise():
    with pytest.raises(InputError, match="sizes contains 41, but loader has 40"):
        timer([40], [1.0], [1.0]).timing([10, 41])
