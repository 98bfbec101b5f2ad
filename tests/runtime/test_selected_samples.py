"""Selection and concatenation of samples undo each other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from leenet_fx.graph.batch_dim import BatchDim, concat_samples, select_samples


@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_concatenation_undoes_selection(count, per_sample, data):
    value = torch.arange(2 * count * per_sample * 3).reshape(2, count * per_sample, 3)
    batch_dims = BatchDim(
        "nested",
        items=(BatchDim("samples", 1, per_sample), BatchDim("size"), BatchDim("constant")),
    )
    whole = (value, 5 * count, "x")
    cut = data.draw(st.integers(0, count))
    parts = [ids for ids in (torch.arange(cut), torch.arange(cut, count)) if len(ids)]
    concatenated = concat_samples(
        [select_samples(whole, batch_dims, indices, count) for indices in parts], batch_dims
    )
    assert torch.equal(concatenated[0], value)
    assert concatenated[1:] == whole[1:]
