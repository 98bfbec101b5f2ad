"""What cuts pass on, and cuts that are rejected."""

import pytest
import torch
from networks import Block, TinyNet, close, images, oracle, tiny
from torch import nn

import leenet_fx
from leenet_fx import InputError, TraceError
from leenet_fx.graph.traced_model import trace_model

EXAMPLE = images(1, 3, 16, 16)


class BatchIntegers(TinyNet):
    """Carries the batch size, a shape and a tensor that is only measured across every cut."""

    def forward(self, x):
        images, batch = x, x.shape[0]
        shape = x.shape
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.reshape(batch, -1, images.size(2) * shape[3]).mean(2)
        return self.fc(x)


class Dense(nn.Module):
    """Several tensors alive at each cut, one of them with the batch on another axis."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(3) for _ in range(3))
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        with_alpha = x.mean((2, 3)).t()
        found = [x]
        for block in self.blocks:
            found.append(block(sum(found)))
        x = torch.cat(found, 1).mean((2, 3))
        return self.fc(x) + with_alpha.sum(0)[:, None]


@pytest.mark.parametrize("model", [BatchIntegers(), Dense()], ids=lambda m: type(m).__name__)
def test_whatever_crosses_a_cut_follows_the_batch(model):
    model = model.eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(6, 3, 16, 16)
    assert torch.equal(ee(x), model(x))
    n = ee.num_exits
    index = torch.tensor([0, n, 1, n, n, 0])
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    wider = images(3, 3, 24, 24)
    assert torch.equal(ee(wider), model(wider))
    index = torch.tensor([n, 0, n])
    assert close(ee.predict(wider, exit_index=index).logits, oracle(ee, wider, index), 1e-5)


class Folded(TinyNet):
    """Folds another axis into the batch between two blocks."""

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        x = x.reshape(-1, 8, 8, 16)
        x = self.blocks[3](self.blocks[2](x))
        x = x.reshape(-1, 8, 16, 16)
        return self.fc(x.mean((2, 3)))


MIXING = {
    "mean over samples": lambda x: x - x.mean(0),
    "first sample": lambda x: x + x[:1],
    "views side by side": lambda x: torch.cat([x, x]).reshape(2, -1, *x.shape[1:]).mean(0),
    "samples torn apart": lambda x: (
        x.reshape(2, x.shape[0], 4, 16, 16).transpose(0, 1).reshape(x.shape)
    ),
    "another order": lambda x: torch.cat([x, x]).reshape(-1, 2, *x.shape[1:]).mean(1),
}


class Mixing(TinyNet):
    """Lets a sample depend on the others in its batch, or may."""

    def __init__(self, way):
        super().__init__()
        self.way = MIXING[way]

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        x = self.way(x)
        return self.fc(self.blocks[3](self.blocks[2](x)).mean((2, 3)))


def test_unsafe_cuts_are_rejected_with_a_reason():
    ee = leenet_fx.attach(Folded().eval(), "every", example_inputs=EXAMPLE)
    assert ee.spec.placement.names == ("blocks.0", "blocks.1")
    assert set(ee.spec.rejected) == {"blocks.2", "blocks.3"}
    assert "several slices per sample" in ee.spec.rejected["blocks.2"]


@pytest.mark.parametrize("way", ["mean over samples", "first sample"])
def test_no_cut_in_front_of_what_mixes_samples(way):
    traced = trace_model(Mixing(way).eval(), example_inputs=EXAMPLE)
    assert "mixes the samples" in traced.rejected["blocks.0"]
    assert "mixes the samples" in traced.rejected["blocks.1"]


@pytest.mark.parametrize("way", ["views side by side", "another order", "samples torn apart"])
def test_no_exits_where_samples_may_change_places(way):
    with pytest.raises(TraceError, match=r"'(cat|reshape)' may mix the samples"):
        leenet_fx.attach(Mixing(way).eval(), "every", example_inputs=EXAMPLE)


def test_no_cut_in_front_of_a_normalisation_over_the_batch():
    model = tiny()
    model.blocks[2].bn = nn.BatchNorm2d(8, track_running_stats=False)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.placement.names == ("blocks.2", "blocks.3")


class Windows(TinyNet):
    """Folds 8x8 windows into the batch: one window at 16x16 behind the stride, four at 32x32."""

    def forward(self, x):
        x = self.stem(x)[:, :, ::2, ::2]
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
        x = self.blocks(x)
        return self.fc(x.mean((2, 3)).reshape(b, -1, c).mean(1))


def test_a_cut_that_another_image_size_breaks_is_rejected_when_it_runs():
    model = Windows().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    index = torch.tensor([0, 4, 2])
    x = images(3, 3, 16, 16)
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    with pytest.raises(InputError, match="does not follow the batch"):
        ee.predict(images(3, 3, 32, 32), exit_index=index)
