"""Capture of models that are hard to trace, each compared with the model itself."""

import copy

import pytest
import timm
import torch
from captured import EXAMPLE, Encoder, check
from networks import TinyNet, close, images, oracle, tiny
from torch import nn
from torch.nn.utils import parametrizations, prune

import leenet_fx
from leenet_fx import InputError, ModeError, TraceError, UnknownNameError


class ShapeFlow(TinyNet):
    """Control flow on shapes, a constant, a tensor of its own device, a flag of training mode.

    torch.Size takes no symbolic values, so that only torch.export captures it.
    """

    def __init__(self):
        super().__init__(dropout=0.5)
        self.register_buffer("table", torch.linspace(-1, 1, 16), persistent=False)

    def forward(self, x):
        if x.ndim != 4 or x.shape[-1] != self.table.shape[0]:
            x = nn.functional.interpolate(x, 16)
        x = x.view(torch.Size(x.shape))
        ramp = torch.arange(x.shape[-1], device=x.device) * torch.tensor([0.1])
        x = self.blocks(self.stem(x + self.table + ramp)).mean((2, 3))
        return {"features": x, "logits": self.fc(self.dropout(x))}


def test_torch_export_captures_what_fx_cannot(caplog):
    model = ShapeFlow().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "export"
    by_fx = leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE)
    assert [row.params for row in ee.costs] == [row.params for row in by_fx.costs]
    assert "cannot be trained" in caplog.text
    assert ee.num_exits == 4
    check(model, ee, expected=lambda x: model(x)["logits"])
    on_meta = copy.deepcopy(ee).to("meta")
    assert on_meta(EXAMPLE.to("meta")).device.type == "meta"


def test_an_exported_backbone_is_fixed_in_evaluation_mode():
    model = ShapeFlow().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(4, 3, 16, 16)
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    assert torch.equal(ee.train()(x).logits[-1], ee.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in ee.state_dict().items())
    with pytest.raises(ModeError, match=r"torch\.export"):
        ee.backbone_parameters()


@pytest.mark.parametrize("kind", ["exported", "encoder"])
def test_fit_trains_only_new_modules(kind):
    model = (ShapeFlow() if kind == "exported" else Encoder()).eval()
    ee = leenet_fx.attach(model, [1], example_inputs=EXAMPLE, num_classes=5)
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    batches = [(images(8, 3, 16, 16, seed=i), torch.arange(8) % 5) for i in range(2)]
    leenet_fx.fit(ee, batches, epochs=1, alpha=0.5, method="leenet")
    changed = {key for key, value in ee.state_dict().items() if not torch.equal(value, before[key])}
    assert {"exits.0.head.linear.weight", "exits.0.gate.linear.weight"} <= changed
    assert ("exits.final.linear.weight" in changed) == (kind == "encoder")
    assert not {key for key in changed if not key.startswith("exits.")}


def test_an_exported_backbone_takes_one_image_size():
    ee = leenet_fx.attach(ShapeFlow().eval(), "every", example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="example_inputs of that size"):
        ee(images(1, 3, 24, 24))


def test_backbone_parameters_exclude_the_exits():
    model = tiny()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert len(ee.backbone_parameters()) == len(list(model.parameters()))


class Aliased(TinyNet):
    """Augmented assignments to values that have a second name, and to values that have none."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            shortcut = x
            x += 0.25
            x = block(x) + shortcut
            x *= 0.5
        size = batch_size = x.shape[0]
        size *= 5
        return self.fc(x.mean((2, 3))).reshape(size).reshape(batch_size, -1)


def test_in_place_arithmetic_affects_all_names_of_a_value():
    model = Aliased().eval()
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE))


class Types(TinyNet):
    """Branches on the type of its input, which is a proxy during tracing."""

    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x * 2
        return super().forward(x)


def test_a_graph_that_differs_from_the_model_is_detected():
    model = Types().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "fx"
    check(model, ee)


class Item(TinyNet):
    def forward(self, x):
        return super().forward(x) * x.max().item()


class ValueFlow(TinyNet):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("cls", [Item, ValueFlow])
def test_a_model_that_depends_on_values_is_rejected(cls):
    with pytest.raises(TraceError, match=rf"{cls.__name__} .*test_capture\.py:\d+"):
        leenet_fx.attach(cls().eval(), "every", example_inputs=EXAMPLE)


class Several(TinyNet):
    """The images are the second argument, after a scale; a mask is optional."""

    def forward(self, scale, pixels, mask=None, *, shift):
        if mask is not None:
            pixels = pixels * mask
        return super().forward(pixels * scale) + shift


def test_concrete_args_are_the_values_of_other_arguments():
    model = Several().eval()
    mask = images(1, 1, 16, 16)
    concrete_args = {"scale": 2.0, "mask": mask, "shift": torch.arange(5.0)}
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, concrete_args=concrete_args)
    check(model, ee, expected=lambda x: model(pixels=x, **concrete_args))


def test_arguments_without_a_value_are_named_in_the_error():
    with pytest.raises(TraceError, match=r"takes scale, pixels, shift: .*concrete_args"):
        leenet_fx.attach(Several().eval(), example_inputs=EXAMPLE)
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        leenet_fx.attach(Several().eval(), example_inputs=EXAMPLE, concrete_args={"scael": 1})


class TrainsOtherwise(TinyNet):
    """Returns a dict in training mode and logits in evaluation mode, as distilled models do."""

    def forward(self, x):
        x = self.blocks(self.stem(x)).mean((2, 3))
        logits = self.fc(self.dropout(x))
        return {"aux": x, "logits": logits} if self.training else logits


def test_a_model_that_returns_a_dict_in_training_mode():
    model = TrainsOtherwise().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    check(model, ee)
    x = images(3, 3, 16, 16)
    logits = ee.train()(x).logits[-1]
    assert close(logits, model.train()(x)["logits"], 1e-5)


def test_a_model_with_two_classifiers_for_distillation():
    model = timm.create_model("levit_128s", img_size=64)
    model.set_distilled_training(True)
    ee = leenet_fx.attach(model.eval(), "every", example_inputs=images(1, 3, 64, 64))
    check(model, ee, size=64)


@pytest.mark.parametrize("training", [False, True])
def test_training_branches_with_the_same_graph_log_no_warning(caplog, training):
    model = TinyNet()
    cls = type("Branching", (TinyNet,), {"forward": _forward_with_branch})
    model.__class__ = cls
    leenet_fx.attach(model.train(training), "every", example_inputs=EXAMPLE)
    assert caplog.text == ""


def _forward_with_branch(self, x):
    if self.training and not isinstance(self.fc, nn.Linear):
        x = x * 2
    return TinyNet.forward(self, x)


def test_pruned_weights_are_supported():
    model = tiny()
    for block in model.blocks:
        prune.l1_unstructured(block.conv1, "weight", amount=0.5)
    prune.ln_structured(model.fc, "weight", amount=0.25, n=2, dim=1)
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE))


@pytest.mark.parametrize("form", ["parametrization", "hook"])
def test_normalised_weights_are_supported(form):
    model = tiny()
    for block in model.blocks:
        if form == "parametrization":
            parametrizations.weight_norm(block.conv1)
            parametrizations.spectral_norm(block.conv2)
        else:
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(block.conv1)
    # Parametrised modules cannot be pickled.
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE), pickles=form == "hook")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_dynamically_quantised_layers_are_supported():
    original = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5).eval()
    model = torch.ao.quantization.quantize_dynamic(original, {nn.Linear}, dtype=torch.qint8)
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 32, 32))
    x = images(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ee(x), model(x))
    # Activations are quantised by the range of the batch: a smaller batch is rounded differently.
    index = torch.tensor([0, 12, 5, 12])
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 0.1)
    original_costs = leenet_fx.attach(original, "every", example_inputs=x).costs
    assert ee.costs.backbone.flops == original_costs.backbone.flops
    assert set(model.state_dict()) <= set(ee.state_dict())


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_cost_as_much_as_their_steps(recurrent, bidirectional):
    class RowByRow(nn.Module):
        """Reads an image row by row."""

        def __init__(self):
            super().__init__()
            options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": True}
            self.blocks = nn.ModuleList(
                recurrent(width, 8, **options) for width in (12, 8 * (1 + bidirectional))
            )
            self.fc = nn.Linear(8 * (1 + bidirectional), 5)

        def forward(self, x):
            x = x.permute(0, 2, 1, 3).flatten(2)
            for block in self.blocks:
                x = block(x)[0]
            return self.fc(x[:, -1])

    model = RowByRow().eval()
    example = images(1, 3, 4, 4)
    ee = leenet_fx.attach(model, "every", example_inputs=example)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[recurrent]
    directions, steps = 1 + bidirectional, 4
    widths = [12, 8 * directions, 8 * directions, 8 * directions]
    macs = (
        sum(directions * steps * gates * 8 * (width + 8) for width in widths) + 8 * directions * 5
    )
    assert ee.costs.backbone.flops == 2 * macs
    check(model, ee, size=4)
