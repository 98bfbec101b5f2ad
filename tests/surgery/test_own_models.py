"""Networks that people bring: what they take, and what is refused by name."""

import copy
import pickle
import random

import pytest
import torch
from captured import EXAMPLE
from networks import TinyNet, close, images, tiny
from torch import nn

import leenet_fx
from leenet_fx import InputError, TraceError


class Bytes(TinyNet):
    def forward(self, x):
        return super().forward(self.convert(x))


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.float() / 255,
        lambda x: x / 255,
        lambda x: x.permute(0, 1, 3, 2).to(torch.float32) - 0.5,
    ],
)
def test_a_model_that_casts_takes_bytes(convert):
    model = Bytes().eval()
    model.convert = convert
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = (images(4, 3, 16, 16).abs() * 80).to(torch.uint8)
    with torch.no_grad():
        assert torch.equal(ee(x), model(x))
        assert torch.equal(ee(x.float()), model(x.float()))
    assert ee.predict(x, exit_index=torch.tensor([0, 1, 2, 4])).exit_index.tolist() == [0, 1, 2, 4]
    assert ee(x[:0]).shape == (0, 5)


def test_other_models_take_the_dtype_of_their_weights():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE)
    with pytest.raises(InputError, match=r"dtype torch\.float32, got torch\.uint8"):
        ee(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


class Keyword(TinyNet):
    def forward(self, *, image, scale=1.0):
        return super().forward(image) * scale


@pytest.mark.parametrize(("model", "name"), [(Keyword(), "image"), (TinyNet(), "x")])
def test_images_by_the_name_of_the_original(model, name):
    ee = leenet_fx.attach(model.eval(), "every", example_inputs=EXAMPLE)
    x = images(3, 3, 16, 16)
    for twin in (ee, copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        assert torch.equal(twin(**{name: x}), model(**{name: x}))
        assert torch.equal(twin(images=x), twin(x))
        assert len(twin.train()(**{name: x}).logits) == 5
        twin.eval()
        with pytest.raises(InputError, match=f"{name}="):
            twin(**{name: x, "scale": 2.0})


class Embedding(TinyNet):
    def forward(self, x):
        return nn.functional.normalize(super().forward(x), dim=1) + 0 * x.mean((1, 2, 3))[:, None]


def test_a_classifier_is_added_to_an_embedding():
    model = Embedding(classes=12).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=7)
    x = images(3, 3, 16, 16)
    assert close(ee(x), ee.exits.final(model(x)), 1e-6)
    assert ee(x).shape == (3, 7)
    assert ee.spec.final_classifier == "exits.final.linear"


class Quantised(TinyNet):
    def __init__(self):
        super().__init__()
        self.stem = torch.ao.nn.quantized.Conv2d(3, 8, 3, padding=1)


@pytest.mark.filterwarnings("ignore")
def test_modules_that_cannot_be_traced_are_named():
    with pytest.raises(InputError, match=r"pass model\._orig_mod"):
        leenet_fx.attach(torch.compile(tiny()), example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="TorchScript"):
        leenet_fx.attach(torch.jit.trace(tiny(), EXAMPLE), example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="'stem' of Quantised is statically quantised"):
        leenet_fx.attach(Quantised().eval(), example_inputs=EXAMPLE)


class TwoImages(TinyNet):
    def forward(self, left, right):
        return super().forward(left - right)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.embedding(x).mean(1))


class ImagesAndText(TinyNet):
    """As transformers' models of both: every argument has a default."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)

    def forward(self, pixel_values=None, input_ids=None):
        return super().forward(pixel_values) + self.embedding(input_ids).mean()


def test_models_of_other_inputs_are_refused():
    with pytest.raises(InputError, match=r"ImagesAndText takes text \('input_ids'\) beside images"):
        leenet_fx.attach(ImagesAndText().eval(), example_inputs=EXAMPLE)
    with pytest.raises(TraceError, match=r"takes left, right"):
        leenet_fx.attach(TwoImages().eval(), example_inputs=EXAMPLE)
    with pytest.raises(InputError, match=r"'embedding' .* whole numbers"):
        leenet_fx.attach(Tokens().eval(), example_inputs=torch.zeros(1, 6, dtype=torch.long))


def test_a_failed_export_prints_nothing(capfd):
    class ByValue(TinyNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(TraceError):
        leenet_fx.attach(ByValue().eval(), example_inputs=EXAMPLE)
    assert not capfd.readouterr().err


class Stochastic(TinyNet):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or self.draw() < 0.5:
                x = block(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), random.random])
def test_the_warning_of_stochastic_depth_does_not_depend_on_the_draw(draw, caplog):
    for seed in range(4):
        torch.manual_seed(seed)
        random.seed(seed)
        caplog.clear()
        leenet_fx.attach(Stochastic(draw).eval(), "every", example_inputs=EXAMPLE)
        assert "branches on self.training" in caplog.text


def test_hooks_on_blocks_warn_at_registration(caplog):
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE)
    seen = []
    ee.get_submodule("blocks.1.conv1").register_forward_hook(lambda *_: seen.append(1))
    ee.get_submodule("exits.0").register_forward_hook(lambda *_: seen.append(1))
    assert not caplog.text
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        caplog.clear()
        handle = getattr(ee.get_submodule("blocks.2"), register)(lambda *_: None)
        assert "'blocks.2' do not run" in caplog.text
        handle.remove()
    caplog.clear()
    pickle.loads(pickle.dumps(leenet_fx.attach(tiny(), example_inputs=EXAMPLE)))
    copy.deepcopy(ee)
    assert not caplog.text
    ee(EXAMPLE)
    assert seen


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_over_the_batch_is_said(caplog):
    model = torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear})
    leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert "depends on the others in its batch" in caplog.text
    caplog.clear()
    half = torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=torch.float16)
    leenet_fx.attach(half, "every", example_inputs=EXAMPLE)
    assert "depends" not in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dtype", "classes"), [(torch.qint8, 5), (torch.qint8, 3), (torch.float16, 5)]
)
def test_quantised_networks_are_trained_on_cached_features_and_loaded(tmp_path, dtype, classes):
    def quantised():
        return torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=dtype)

    ee = leenet_fx.attach(quantised(), "every", example_inputs=EXAMPLE, num_classes=classes)
    data = [(images(4, 3, 16, 16), torch.arange(4) % classes)] * 2
    before = [p.clone() for p in ee.exits.parameters()]
    leenet_fx.fit(ee, data, epochs=1, cache=True)
    after = list(ee.exits.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    leenet_fx.save(ee, tmp_path / "exits")
    twin = leenet_fx.load(tmp_path / "exits", quantised())
    x = images(5, 3, 16, 16)
    assert torch.equal(twin(x), ee(x))
    for logits, expected in zip(twin.all_exits(x).logits, ee.all_exits(x).logits, strict=True):
        assert torch.equal(logits, expected)


class Recurrent(TinyNet):
    def __init__(self, kind):
        super().__init__()
        self.read = kind(8, 8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_quantised_recurrent_layers_are_refused_by_name(kind):
    model = torch.ao.quantization.quantize_dynamic(Recurrent(kind).eval(), {kind})
    with pytest.raises(InputError, match=rf"'read' of Recurrent is a .* quantised {kind.__name__}"):
        leenet_fx.attach(model, example_inputs=EXAMPLE)


def test_half_precision_is_not_trained_on_the_cpu():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE).half()
    batches = [(images(4, 3, 16, 16).half(), torch.arange(4) % 5)]
    with pytest.raises(InputError, match="float16 is not supported on the CPU"):
        leenet_fx.fit(ee, batches, epochs=1)
