"""Digests of weights: what changes them and what does not."""

import subprocess
import sys

import pytest
import torch

from leenet_fx.digest import weights_digest

SCRIPT = """
import torch
from leenet_fx.digest import weights_digest
torch.set_num_threads({threads})
values = torch.randn(64, 33, 5, 5, generator=torch.Generator().manual_seed(0))
print(weights_digest([("weight", values)]))
"""


def weights(seed=0):
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def digest(tensor, name="weight"):
    return weights_digest([(name, tensor)])


def test_memory_format_copies_and_order_do_not_matter():
    tensor = weights()
    strided = tensor.to(memory_format=torch.channels_last)
    assert strided.stride() != tensor.stride()
    assert digest(tensor) == digest(strided) == digest(tensor.clone())
    pairs = [("a", tensor), ("b", weights(1))]
    assert weights_digest(pairs) == weights_digest(pairs[::-1])


def test_the_number_of_threads_does_not_matter():
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT.format(threads=threads)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    "other",
    [
        weights(1),
        weights().reshape(4, 8, 3, 3),
        weights().double(),
        weights().flip(0),
        weights().transpose(2, 3),
    ],
    ids=["values", "shape", "dtype", "order", "transposed"],
)
def test_values_shape_dtype_and_order_matter(other):
    assert digest(weights()) != digest(other)


def test_the_name_matters():
    assert digest(weights(), "weight") != digest(weights(), "bias")


def test_values_that_cancel_in_a_sum_matter():
    tensor = weights()
    changed = tensor.clone()
    changed.view(-1)[0], changed.view(-1)[1] = tensor.view(-1)[1], tensor.view(-1)[0]
    assert digest(tensor) != digest(changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_way_of_changing_a_tensor_is_noticed(dtype):
    tensor = torch.zeros(5, dtype=dtype)
    before = digest(tensor)
    assert digest(tensor) == before
    tensor[0] = 1
    second = digest(tensor)
    tensor.data[1] = 1
    third = digest(tensor)
    tensor.data = torch.ones(5, dtype=dtype)
    assert len({before, second, third, digest(tensor)}) == 4


def test_scalars_empty_complex_meta_and_inference_tensors_have_digests():
    with torch.inference_mode():
        inference = torch.ones(3)
    tensors = (torch.tensor(1.0), torch.empty(0, 2), torch.ones(2, dtype=torch.cfloat), inference)
    for tensor in (*tensors, torch.empty(2, device="meta")):
        assert digest(tensor) == digest(tensor)
        assert len(digest(tensor)) == 64
