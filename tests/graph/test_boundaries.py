"""Where graphs can be cut, and the values alive there."""

import pytest
import torch
from captured import EXAMPLE
from networks import TinyNet, tiny

from leenet_fx.graph.batch_dim import BatchDim
from leenet_fx.graph.traced_model import trace_model


def boundaries(model):
    traced = trace_model(model.eval(), example_inputs=EXAMPLE)
    return traced, {boundary.name: boundary for boundary in traced.boundaries}


def test_live_values_and_features_of_a_chain():
    traced, found = boundaries(tiny())
    assert traced.rejected == {}
    for boundary in found.values():
        (feature,) = boundary.features
        assert boundary.live == (feature.node,)
        assert boundary.batch_dims == (BatchDim("samples"),)
        assert (feature.shape, feature.channel_axis) == ((1, 8, 16, 16), 1)


def test_a_batch_size_read_early_is_alive_at_every_boundary():
    class BatchSize(TinyNet):
        def forward(self, x):
            batch_size = x.shape[0]
            return self.fc(self.blocks(self.stem(x)).reshape(batch_size, 8, -1).mean(2))

    _, found = boundaries(BatchSize())
    for boundary in found.values():
        assert {dim.kind for dim in boundary.batch_dims} == {"size", "samples"}
        assert len(boundary.features) == 1


class Overwritten(TinyNet):
    """Overwrites the output of the second block, and reads it again later."""

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        shortcut = x
        y = self.blocks[2](x)
        x[:, :1] = 0.0
        return self.fc(self.blocks[3](y + shortcut).mean((2, 3)))


def test_a_live_value_that_is_overwritten_later_is_rejected():
    traced, found = boundaries(Overwritten())
    assert set(traced.rejected) == {"blocks.1", "blocks.2"}
    assert all("overwritten in place later" in reason for reason in traced.rejected.values())
    assert set(found) == {"blocks.0", "blocks.3"}


def test_in_place_arithmetic_after_a_boundary_is_replaced():
    class Shifted(TinyNet):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
                x += 1
            return self.fc(x.mean((2, 3)))

    traced, found = boundaries(Shifted())
    assert traced.rejected == {}
    assert len(found) == 4
    x = torch.randn(2, 3, 16, 16)
    module = torch.fx.GraphModule(traced.trace.root, traced.trace.graph)
    with torch.no_grad():
        assert torch.equal(module(x), traced.trace.root(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_boundary_moves_behind_an_in_place_operator(inplace):
    class Activated(TinyNet):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = torch.nn.functional.relu(block(x), inplace=inplace)
            return self.fc(x.mean((2, 3)))

    _, found = boundaries(Activated())
    assert len(found) == 4
    assert all(("relu" in b.features[0].node.name) == inplace for b in found.values())


def test_the_outputs_of_a_block_are_unpacked_before_the_boundary():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (torch.nn.Conv2d(4, 4, 1) for _ in range(2))

        def forward(self, a, b):
            return torch.chunk(torch.cat([self.one(a), self.two(b)], 1), 2, 1)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 4, 1)
            self.blocks = torch.nn.ModuleList(Pair() for _ in range(3))
            self.fc = torch.nn.Linear(4, 5)

        def forward(self, x):
            a = b = self.stem(x)
            for block in self.blocks:
                a, b = block(a, b)
            return self.fc((a + b).mean((2, 3)))

    _, found = boundaries(Net())
    assert [len(boundary.features) for boundary in found.values()] == [2, 2, 2]
