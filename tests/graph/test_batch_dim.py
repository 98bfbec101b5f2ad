"""Batch dimensions: classification at two batch sizes, selection and joining of samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leenet_fx import InputError
from leenet_fx.graph.batch_dim import (
    PROBE_BATCH_SIZES,
    BatchDim,
    classify,
    concat_samples,
    select_samples,
    summarise,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda n: torch.empty(n, 4), BatchDim("samples")),
        (lambda n: torch.empty(2, 5 * n), BatchDim("samples", 1, 5)),
        (lambda n: torch.empty(2, 3), BatchDim("constant")),
        (lambda n: 7 * n, BatchDim("size")),
        (lambda n: 7, BatchDim("constant")),
        (lambda n: "mean", BatchDim("constant")),
        (lambda n: (n, 8), BatchDim("nested", items=(BatchDim("size"), BatchDim("constant")))),
        (lambda n: [1, 2], BatchDim("constant")),
        (lambda n: torch.empty(n, n), BatchDim("unusable")),
        (lambda n: torch.empty(n + 1), BatchDim("unusable")),
        (lambda n: n + 1, BatchDim("unusable")),
        (lambda n: list(range(n)), BatchDim("unusable")),
        (lambda n: object(), BatchDim("unusable")),
    ],
)
def test_classification_of_values(value, expected):
    small, large = (summarise(value(n)) for n in PROBE_BATCH_SIZES)
    assert classify(small, large) == expected
    assert expected.usable == (expected.kind != "unusable")


def test_a_nested_value_with_an_unusable_item_is_unusable():
    assert not BatchDim("nested", items=(BatchDim("size"), BatchDim("unusable"))).usable


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_selected_samples_have_the_slices_of_their_indices(count, per_sample, data):
    value = torch.arange(count * per_sample * 2).reshape(count * per_sample, 2)
    indices = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True).map(sorted))
    batch_dim = BatchDim("samples", 0, per_sample)
    selected = select_samples(value, batch_dim, torch.tensor(indices), count)
    expected = value.reshape(count, per_sample, 2)[indices].flatten(0, 1)
    assert torch.equal(selected, expected)
    assert torch.equal(
        select_samples(value.t(), BatchDim("samples", 1, per_sample), torch.tensor(indices), count),
        expected.t(),
    )


def test_sizes_keep_their_type_after_selection_and_joining():
    shape = BatchDim("nested", items=(BatchDim("size"), BatchDim("constant")))
    selected = select_samples(torch.Size((4, 8)), shape, torch.tensor([0, 3]), 4)
    assert selected == torch.Size((2, 8))
    assert isinstance(concat_samples([selected, selected], shape), torch.Size)


def test_selection_keeps_the_channels_last_memory_format():
    value = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
    selected = select_samples(value, BatchDim("samples"), torch.tensor([1, 2]), 4)
    assert selected.is_contiguous(memory_format=torch.channels_last)


def test_a_tensor_without_slices_for_each_sample_is_rejected():
    with pytest.raises(InputError, match="does not follow the batch"):
        select_samples(torch.empty(5, 2), BatchDim("samples"), torch.tensor([0]), 4)
