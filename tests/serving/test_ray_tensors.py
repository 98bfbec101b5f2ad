"""Tensors in Ray's object store come back as they were."""

import pickle

import pytest
import torch

from leenet_fx.serving.ray_tensors import pack, unpack


def stored_and_fetched(tensor):
    return unpack(pickle.loads(pickle.dumps(pack(tensor), protocol=5)))


DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (1, 7, 1, 1), (2, 3, 4, 5)])
def test_values_dtype_and_shape_are_kept(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(-4, 4, shape, generator=generator).to(dtype)
    found = stored_and_fetched(tensor)
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[:1].to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 1, 0, 2),
        lambda x: x.transpose(0, 1),
    ],
)
def test_the_memory_format_of_dense_tensors_is_kept(laid_out):
    tensor = laid_out(torch.randn(2, 3, 4, 5))
    found = stored_and_fetched(tensor)
    assert torch.equal(found, tensor)
    assert found.stride() == tensor.stride()


@pytest.mark.parametrize("view", [lambda x: x[:, ::2], lambda x: x[:1].expand(4, 6), lambda x: x.T])
def test_views_have_their_own_values(view):
    tensor = view(torch.arange(24.0).reshape(4, 6))
    assert torch.equal(stored_and_fetched(tensor), tensor)


def test_what_is_fetched_may_be_written_to_and_is_a_copy():
    with torch.inference_mode():
        stored = pack(torch.ones(3))
    stored.values.flags.writeable = False
    found = unpack(stored)
    found.add_(1)
    assert unpack(stored).tolist() == [1, 1, 1]
    assert found.tolist() == [2, 2, 2]
    assert not found.requires_grad
