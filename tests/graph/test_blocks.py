"""The rule for blocks, and blocks chosen by the user."""

import pytest
from captured import EXAMPLE, check
from networks import Block, TinyNet, images, tiny
from torch import nn

import leenet_fx
from leenet_fx import UnknownNameError
from leenet_fx.graph.traced_model import trace_model


def block_names(model, size=16):
    example = images(1, 3, size, size)
    return [b.name for b in trace_model(model.eval(), example_inputs=example).boundaries]


def test_residual_blocks_are_blocks_and_their_convolutions_are_not():
    assert block_names(tiny()) == [f"blocks.{i}" for i in range(4)]


def test_stages_are_divided_into_their_blocks():
    class Stages(TinyNet):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(
                *(nn.Sequential(Block(8), Block(8)) for _ in range(2)),
            )

    assert block_names(Stages()) == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]


def test_a_sequence_with_a_shortcut_around_its_parts_is_one_block():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer0, self.layer1 = Block(8), Block(8)

        def forward(self, x):
            return x + self.layer1(self.layer0(x))

    class Net(TinyNet):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Shortcut(), Shortcut(), Shortcut())

    assert block_names(Net()) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_network_without_repeated_blocks_is_divided_after_its_weight_layers():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 49, 6),
        nn.ReLU(),
        nn.Linear(6, 5),
    )
    traced = trace_model(model.eval(), example_inputs=EXAMPLE)
    assert [b.name for b in traced.boundaries] == ["0", "5"]
    nodes = list(traced.trace.graph.nodes)
    assert [nodes[b.position].target for b in traced.boundaries] == ["3", "6"]


def test_blocks_are_chosen_by_name_or_class():
    model = tiny()
    by_name = leenet_fx.attach(
        model, "every", example_inputs=EXAMPLE, blocks=["stem", "blocks.[02]", "blocks.1.*1"]
    )
    assert by_name.spec.placement.names == ("stem", "blocks.0", "blocks.1.conv1", "blocks.2")
    by_class = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, blocks=[Block])
    assert by_class.spec.placement.names == tuple(f"blocks.{i}" for i in range(4))
    check(model, by_name)


@pytest.mark.parametrize("blocks", [["blocks.9"], ["blocs.0"], [nn.LSTM]])
def test_unknown_blocks_are_rejected(blocks):
    with pytest.raises(UnknownNameError, match="Unknown block"):
        leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, blocks=blocks)
