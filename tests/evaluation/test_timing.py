"""Times on test sets of growing size."""

import statistics

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


def test_few_batches_are_timed_repeatedly_and_many_once():
    for batches, repeats in ((1, 20), (7, 3), (20, 1), (500, 1), (None, 1)):
        assert BatchTimer(torch.device("cpu"), batches).repeats == repeats
    measured = BatchTimer(torch.device("cpu"), 10)
    calls = []
    models = {
        "ee": lambda x: (calls.append("ee"), x + 1)[1],
        "backbone": lambda x: (calls.append("backbone"), x - 1)[1],
    }
    images = torch.arange(3.0)
    for _ in range(2):
        outputs = measured.measure(models, images)
        assert torch.equal(outputs["ee"], images + 1)
        assert torch.equal(outputs["backbone"], images - 1)
    # Each network is first in half of the measurements.
    first = ["ee", "backbone", "backbone", "ee"]
    assert calls == [*first, *first[2:], *first[:2]]
    assert measured.batch_sizes == [3, 3]
    assert measured.counts == [3] * 4
    assert measured.seconds["ee"] == [
        pytest.approx(statistics.median(measured.pairs["ee"][start : start + 2]))
        for start in (0, 2)
    ]
    assert measured.total("ee") == sum(measured.seconds["ee"]) > 0


@pytest.mark.parametrize("sizes", [[5], [10, 5], [0, 5], [5, 5], [1.5, 3], [True, 3]])
def test_invalid_sizes_raise(sizes):
    with pytest.raises(InputError, match="sizes must be"):
        check_sizes(sizes)


def test_more_images_than_there_are_raise():
    with pytest.raises(InputError, match="sizes contains 41, but loader has 40"):
        timer([40], [1.0], [1.0]).timing([10, 41])
