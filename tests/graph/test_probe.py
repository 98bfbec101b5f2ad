"""Control flow on shapes, types and devices is followed by torch.fx, for images of one size."""

import copy

import pytest
import torch
from captured import EXAMPLE, check
from networks import Block, TinyNet, images
from torch import nn

import leenet_fx
from leenet_fx import InputError


class Rank(TinyNet):
    """A branch on the rank and on a width, and a constant that depends on a shape."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.register_buffer("table", torch.linspace(-1, 1, 16), persistent=False)

    def forward(self, x):
        if x.ndim != 4 or x.shape[-1] != self.table.shape[0]:
            x = nn.functional.interpolate(x, 16)
        x = x + torch.arange(x.shape[-1], device=x.device) * torch.tensor([0.1])
        return super().forward(x + self.table)


class Numbers(TinyNet):
    """len and int of the batch size, unpacked and sliced shapes, an assertion."""

    def forward(self, x):
        batch, (_, height, *_rest) = int(x.shape[0]), x.shape[1:]
        assert height % 4 == 0
        x = self.blocks(self.stem(x.view(len(x), *x.shape[1:])))
        for _ in range(x.shape[1] // 8):
            x = x.reshape((*x.size()[:-2], -1)).reshape(x.shape)
        return self.fc(x.flatten(2).mean(2).view(batch, -1))


class Devices(TinyNet):
    def __init__(self):
        super().__init__()
        self.device = "cpu"
        self.place = torch.device("cpu")

    def forward(self, x):
        x = x.to(next(self.parameters()).device).to(self.device)
        return super().forward(x + torch.ones(1, device=self.place))


class Types(TinyNet):
    def forward(self, x):
        shape = x.shape if isinstance(x, torch.Tensor) else None
        assert isinstance(shape[0], int)
        assert torch.is_tensor(x)
        return super().forward(x.view(shape))


def record(module, inputs, output):
    module.__dict__["recorded"] = tuple(output.shape)


class Hooked(TinyNet):
    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.register_forward_hook(record)


@pytest.mark.parametrize("cls", [Rank, Numbers, Devices, Types, Hooked])
def test_torch_fx_follows_control_flow(cls, caplog):
    model = cls().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "fx"
    assert ee.spec.placement.names == tuple(f"blocks.{i}" for i in range(4))
    check(model, ee)
    # The operations of hooks are in the graph; that hooks themselves do not run is said.
    others = [line for line in caplog.text.splitlines() if "Hooks of 'blocks." not in line]
    assert (others, bool(caplog.text)) == ([], cls is Hooked)
    assert ee.backbone_parameters()
    on_meta = copy.deepcopy(ee).to("meta")
    assert on_meta(EXAMPLE.to("meta")).device.type == "meta"
    assert not {"len", "int"} & set(globals())


class EvenOnly(TinyNet):
    """Pads odd sizes only."""

    def forward(self, x):
        if x.shape[-1] % 2:
            x = nn.functional.pad(x, (0, 1, 0, 1))
        x = nn.functional.pixel_unshuffle(x, 2)[:, :3]
        return super().forward(x)


@pytest.mark.parametrize(("size", "fits", "other"), [(16, 24, 17), (17, 9, 16)])
def test_images_that_take_another_path_are_rejected(size, fits, other):
    model = EvenOnly().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, size, size))
    x = images(2, 3, fits, fits)
    assert torch.allclose(ee(x), model(x), atol=1e-6)
    with pytest.raises(InputError, match=r"control flow .* another path"):
        ee(images(2, 3, other, other))
    with pytest.raises(InputError, match="another path"):
        ee.predict(images(2, 3, other, other), exit_index=0)


class Encoder(nn.Module):
    """Tokens through torch's own encoder."""

    def __init__(self, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, norm_first=norm_first, dropout=0.0
        )
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(16), enable_nested_tensor=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_of_torch_is_cut_after_each_layer(norm_first):
    model = Encoder(norm_first).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.placement.names == tuple(f"encoder.layers.{i}" for i in range(4))
    check(model, ee)


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu() / 8


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = TinyNet()
        self.model.blocks = nn.Sequential(*(nn.Sequential(Block(8), Block(8)) for _ in range(3)))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.model(x) * self.scale


class FromOutside(TinyNet):
    """Its forward calls the layers of its blocks."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            y = block.conv2(torch.relu(block.bn(block.conv1(x))))
            x = torch.relu(x + y)
        return self.fc(x.mean((2, 3)))


def residual(depth):
    blocks = [OneConvolution() for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, *head)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: residual(30), [str(i + 1) for i in range(30)]),
        (Wrapped, [f"model.blocks.{i}.{j}" for i in range(3) for j in range(2)]),
        (FromOutside, [f"blocks.{i}" for i in range(4)]),
        (lambda: torch.fx.symbolic_trace(TinyNet()), [f"blocks.{i}" for i in range(4)]),
    ],
)
def test_blocks_that_a_person_would_choose(build, names):
    model = build().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert list(ee.spec.placement.names) == names
    check(model, ee)


def test_few_boundaries_are_explained(caplog):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 14), nn.Flatten()).eval()
    leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert "1 block boundary" in caplog.text
    assert "blocks=" in caplog.text
