"""Models that are hard to turn into a graph, each against the model itself."""

import copy
import pickle

import pytest
import timm
import torch
from networks import Block, TinyNet, close, images, oracle, tiny
from torch import nn
from torch.nn.utils import parametrizations, prune

import leenet_fx
from leenet_fx import InputError, ModeError, TraceError, UnknownNameError

EXAMPLE = images(1, 3, 16, 16)


def check(model, ee, expected=None, size=16, pickles=True):
    """What the result promises: equal with shut gates, to its oracle, after copying; same keys."""
    expected = expected or model
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = images(batch, 3, size, size, seed=batch)
            assert close(ee(x), expected(x), 1e-5)
    x = images(5, 3, size, size)
    n = ee.num_exits
    index = torch.tensor([0, n, 0, n - 1, n])
    twins = [ee, copy.deepcopy(ee), *([pickle.loads(pickle.dumps(ee))] if pickles else [])]
    for twin in twins:
        assert close(twin.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    ours = {key for key in ee.state_dict() if not key.startswith("exits.")}
    assert ours == set(model.state_dict())


class ShapeFlow(TinyNet):
    """Control flow on shapes, a constant, a tensor of its own device, a flag of training mode."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.register_buffer("table", torch.linspace(-1, 1, 16), persistent=False)

    def forward(self, x):
        if x.ndim != 4 or x.shape[-1] != self.table.shape[0]:
            x = nn.functional.interpolate(x, 16)
        ramp = torch.arange(x.shape[-1], device=x.device) * torch.tensor([0.1])
        x = self.blocks(self.stem(x + self.table + ramp)).mean((2, 3))
        return {"features": x, "logits": self.fc(self.dropout(x))}


def test_torch_export_takes_over_where_fx_cannot(caplog):
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


def test_an_exported_backbone_stays_as_in_evaluation_mode():
    model = ShapeFlow().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    x = images(4, 3, 16, 16)
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    assert torch.equal(ee.train()(x).logits[-1], ee.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in ee.state_dict().items())
    with pytest.raises(ModeError, match=r"torch\.export"):
        ee.backbone_parameters()


@pytest.mark.parametrize("kind", ["exported", "encoder"])
def test_fit_trains_what_is_new(kind):
    model = (ShapeFlow() if kind == "exported" else Encoder()).eval()
    ee = leenet_fx.attach(model, [1], example_inputs=EXAMPLE, num_classes=5)
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    batches = [(images(8, 3, 16, 16, seed=i), torch.arange(8) % 5) for i in range(2)]
    leenet_fx.fit(ee, batches, epochs=1, alpha=0.5, method="leenet")
    moved = {key for key, value in ee.state_dict().items() if not torch.equal(value, before[key])}
    assert {"exits.0.head.linear.weight", "exits.0.gate.linear.weight"} <= moved
    assert ("exits.final.linear.weight" in moved) == (kind == "encoder")
    assert not {key for key in moved if not key.startswith("exits.")}


def test_an_exported_backbone_takes_one_image_size():
    ee = leenet_fx.attach(ShapeFlow().eval(), "every", example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="example_inputs of that size"):
        ee(images(1, 3, 24, 24))


def test_backbone_parameters_are_all_but_the_exits():
    model = tiny()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert len(ee.backbone_parameters()) == len(list(model.parameters()))


class Aliased(TinyNet):
    """Augmented assignments that a second name sees, and some that none does."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            kept = x
            x += 0.25
            x = block(x) + kept
            x *= 0.5
        values = rows = x.shape[0]
        values *= 5
        return self.fc(x.mean((2, 3))).reshape(values).reshape(rows, -1)


def test_what_is_changed_in_place_is_seen_under_every_name():
    model = Aliased().eval()
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE))


class Types(TinyNet):
    """Takes another way for what is no tensor: a trace that never asks would bake that in."""

    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x * 2
        return super().forward(x)


def test_a_trace_that_went_another_way_is_noticed():
    model = Types().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    assert ee.spec.tracer == "export"
    check(model, ee)


class Item(TinyNet):
    def forward(self, x):
        return super().forward(x) * x.max().item()


class ValueFlow(TinyNet):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("cls", [Item, ValueFlow])
def test_a_model_that_depends_on_values_is_refused(cls):
    with pytest.raises(TraceError, match=rf"{cls.__name__} .*test_capture\.py:\d+"):
        leenet_fx.attach(cls().eval(), "every", example_inputs=EXAMPLE)


class Several(TinyNet):
    """Images come second, behind a scale; a mask is optional."""

    def forward(self, scale, pixels, mask=None, *, shift):
        if mask is not None:
            pixels = pixels * mask
        return super().forward(pixels * scale) + shift


def test_other_inputs_get_a_value():
    model = Several().eval()
    mask = images(1, 1, 16, 16)
    given = {"scale": 2.0, "mask": mask, "shift": torch.arange(5.0)}
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, concrete_args=given)
    check(model, ee, expected=lambda x: model(pixels=x, **given))


def test_other_inputs_without_a_value_are_named():
    with pytest.raises(TraceError, match=r"takes scale, pixels, shift: .*concrete_args"):
        leenet_fx.attach(Several().eval(), example_inputs=EXAMPLE)
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        leenet_fx.attach(Several().eval(), example_inputs=EXAMPLE, concrete_args={"scael": 1})


class TrainsOtherwise(TinyNet):
    """A dict in training, logits in evaluation, as detectors and distilled models have it."""

    def forward(self, x):
        x = self.blocks(self.stem(x)).mean((2, 3))
        logits = self.fc(self.dropout(x))
        return {"aux": x, "logits": logits} if self.training else logits


def test_a_dict_in_training_mode():
    model = TrainsOtherwise().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    check(model, ee)
    x = images(3, 3, 16, 16)
    found = ee.train()(x).logits[-1]
    assert close(found, model.train()(x)["logits"], 1e-5)


def test_a_distilled_pair():
    model = timm.create_model("levit_128s", img_size=64)
    model.set_distilled_training(True)
    ee = leenet_fx.attach(model.eval(), "every", example_inputs=images(1, 3, 64, 64))
    check(model, ee, size=64)


@pytest.mark.parametrize("training", [False, True])
def test_branches_that_come_to_the_same_raise_no_warning(caplog, training):
    model = TinyNet()
    cls = type("Branching", (TinyNet,), {"forward": _forward_with_branch})
    model.__class__ = cls
    leenet_fx.attach(model.train(training), "every", example_inputs=EXAMPLE)
    assert caplog.text == ""


def _forward_with_branch(self, x):
    if self.training and not isinstance(self.fc, nn.Linear):
        x = x * 2
    return TinyNet.forward(self, x)


def test_pruned_weights():
    model = tiny()
    for block in model.blocks:
        prune.l1_unstructured(block.conv1, "weight", amount=0.5)
    prune.ln_structured(model.fc, "weight", amount=0.25, n=2, dim=1)
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE))


@pytest.mark.parametrize("form", ["parametrization", "hook"])
def test_normed_weights(form):
    model = tiny()
    for block in model.blocks:
        if form == "parametrization":
            parametrizations.weight_norm(block.conv1)
            parametrizations.spectral_norm(block.conv2)
        else:
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(block.conv1)
    # Parametrised modules refuse to be pickled.
    check(model, leenet_fx.attach(model, "every", example_inputs=EXAMPLE), pickles=form == "hook")


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_dynamically_quantised_layers():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5).eval()
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 32, 32))
    x = images(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ee(x), model(x))
    # Activations are quantised by the range of the batch: a smaller batch rounds otherwise.
    index = torch.tensor([0, 12, 5, 12])
    assert close(ee.predict(x, exit_index=index).logits, oracle(ee, x, index), 0.1)
    plain_costs = leenet_fx.attach(plain, "every", example_inputs=x).costs
    assert ee.costs.backbone.flops == plain_costs.backbone.flops
    assert set(model.state_dict()) <= set(ee.state_dict())


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_cost_what_their_steps_cost(recurrent, bidirectional):
    class FeatureBatch(nn.Module):
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

    model = FeatureBatch().eval()
    example = images(1, 3, 4, 4)
    ee = leenet_fx.attach(model, "every", example_inputs=example)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[recurrent]
    ways, steps = 1 + bidirectional, 4
    widths = [12, 8 * ways, 8 * ways, 8 * ways]
    macs = sum(ways * steps * gates * 8 * (width + 8) for width in widths) + 8 * ways * 5
    assert ee.costs.backbone.flops == 2 * macs
    check(model, ee, size=4)


class Encoder(TinyNet):
    num_classes = 0

    def forward(self, x):
        return self.blocks(self.stem(x))


@pytest.mark.parametrize("shape", ["maps", "tokens", "vectors"])
def test_an_encoder_gets_a_class_head(shape):
    class Shaped(Encoder):
        def forward(self, x):
            x = super().forward(x)
            if shape == "tokens":
                return x.flatten(2).transpose(1, 2)
            return x.mean((2, 3)) if shape == "vectors" else x

    model = Shaped().eval()
    with pytest.raises(InputError, match="pass num_classes"):
        leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=7)
    head = ee.get_submodule(ee.spec.final_classifier)
    assert ee.spec.classifier_is_new
    assert (head.in_features, head.out_features) == (8, 7)
    pooled = Encoder.forward
    check(model, ee, expected=lambda x: head(pooled(model, x).mean((2, 3))))
    assert len(ee.exits) == 4
    assert all(key.startswith("exits.") for key in ee.state_dict().keys() - model.state_dict())


def test_an_encoder_of_timm_gets_the_head_that_timm_would_give_it():
    model = timm.create_model("resnet18", num_classes=0).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 64, 64), num_classes=6)
    theirs = timm.create_model("resnet18", num_classes=6).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    head = ee.get_submodule(ee.spec.final_classifier)
    theirs.fc.load_state_dict(head.state_dict())
    check(model, ee, expected=theirs, size=64)


def test_blocks_are_what_the_user_says():
    model = tiny()
    by_name = leenet_fx.attach(
        model, "every", example_inputs=EXAMPLE, blocks=["stem", "blocks.[02]", "blocks.1.*1"]
    )
    assert by_name.spec.placement.names == ("stem", "blocks.0", "blocks.1.conv1", "blocks.2")
    by_class = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, blocks=[Block])
    assert by_class.spec.placement.names == tuple(f"blocks.{i}" for i in range(4))
    check(model, by_name)


@pytest.mark.parametrize("blocks", [["blocks.9"], ["blocs.0"], [nn.LSTM]])
def test_blocks_that_do_not_exist(blocks):
    with pytest.raises(UnknownNameError, match="Unknown block"):
        leenet_fx.attach(tiny(), "every", example_inputs=EXAMPLE, blocks=blocks)
