"""Image classifiers of transformers, at small configurations."""

import json

import pytest
import torch
from captured import check
from networks import images
from PIL import Image

import leenet_fx
from leenet_fx import InputError, UnknownNameError

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
SMALL = {
    "resnet": (
        STAGES,
        [f"resnet.encoder.stages.{i}.layers.{j}" for i, j in ((0, 0), (1, 0), (1, 1))],
    ),
    "vit": (TOKENS, [f"vit.layers.{i}" for i in range(3)]),
    "dinov2": (TOKENS, [f"dinov2.encoder.layer.{i}" for i in range(3)]),
    "convnext": (
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 32},
        [f"convnext.encoder.stages.{i}.layers.{j}" for i, j in ((0, 0), (1, 0), (1, 1))],
    ),
    "swin": (
        {
            "embed_dim": 8,
            "depths": [2, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "image_size": 32,
            "patch_size": 4,
        },
        [f"swin.encoder.layers.{i}.blocks.{j}" for i, j in ((0, 0), (0, 1), (1, 0))],
    ),
}
LABELS = {0: "cat", 1: "dog", 2: "fox", 3: "hen", 4: "owl"}


def build(name):
    torch.manual_seed(0)
    options = {**SMALL[name][0], "id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    model = leenet_fx.create_model(f"hf/{name}", **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_models_of_transformers_are_traced(name):
    model = build(name)
    x = images(4, 3, 32, 32)
    ee = leenet_fx.attach(model, "every", example_inputs=x[:1])
    assert ee.spec.tracer == "fx"
    assert list(ee.spec.placement.names) == SMALL[name][1]
    check(model, ee, expected=lambda x: model(x).logits, size=32, pickles=False)
    assert ee.spec.class_names == tuple(LABELS.values())
    with torch.no_grad():
        named = ee(pixel_values=x)
        assert torch.equal(named.logits, ee(x))
        assert torch.equal(named["logits"], ee(x))
    ee.train()(x).logits[-1].sum().backward()
    gradients = [p.grad for n, p in ee.named_parameters() if not n.startswith("exits.")]
    assert sum(gradient is not None for gradient in gradients) >= len(gradients) - 2


def test_the_image_size_is_that_of_the_configuration(caplog):
    ee = leenet_fx.attach(build("vit"))
    assert ee.spec.image_shape == (3, 32, 32)
    assert not [record for record in caplog.records if record.name == "leenet_fx"]


def test_other_image_sizes_fit_where_the_model_takes_them():
    model = build("resnet")
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 32, 32))
    x = images(2, 3, 48, 40)
    with torch.no_grad():
        assert torch.allclose(ee(x), model(x).logits, atol=1e-5)
    vit = leenet_fx.attach(build("vit"), "every")
    with pytest.raises(InputError, match="another path"):
        vit(images(2, 3, 48, 48))


def test_names_of_transformers():
    assert "hf/resnet" in leenet_fx.list_models("hf/res*")
    with pytest.raises(UnknownNameError, match="resnet"):
        leenet_fx.create_model("hf/resnett")
    with pytest.raises(InputError, match="hf:OWNER/NAME"):
        leenet_fx.create_model("hf/resnet", pretrained=True)
    with pytest.raises(InputError, match="cannot be loaded"):
        leenet_fx.create_model("hf:./no-such-folder")


def test_arguments_by_name():
    ee = leenet_fx.attach(build("vit"), "every")
    x = images(2, 3, 32, 32)
    with pytest.raises(InputError, match="pixel_values="):
        ee(pixel_values=x, labels=torch.zeros(2))
    with pytest.raises(InputError, match="pixel_values="):
        ee(x, pixel_values=x)


PROCESSORS = {
    "vit": ("ViTImageProcessor", {"size": {"height": 32, "width": 32}}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    "resnet": (
        "BitImageProcessor",
        {
            "size": {"shortest_edge": 48},
            "crop_size": {"height": 40, "width": 40},
            "resample": 3,
            "rescale_factor": 1 / 127.5,
        },
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_transformed_as_the_image_processor_does(tmp_path, name):
    import transformers

    cls, options = PROCESSORS[name]
    options = {**options, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    processor = getattr(transformers, cls)(**options)
    processor.save_pretrained(tmp_path)
    build(name).save_pretrained(tmp_path)
    model = leenet_fx.create_model(f"hf:{tmp_path}")
    ee = leenet_fx.attach(model, "every")
    size = 40 if name == "resnet" else 32
    assert ee.spec.image_shape == (3, size, size)
    assert ee.spec.class_names == tuple(LABELS.values())
    ramp = torch.linspace(0, 255, 3 * 90 * 70).view(90, 70, 3).flip(0)
    image = Image.fromarray(ramp.to(torch.uint8).numpy())
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    for network in (model, loaded):
        found = leenet_fx.make_transform(network, ee.spec.image_shape)(image)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 0.06


def test_a_processor_that_swaps_channels_is_named(tmp_path, caplog):
    from transformers import MobileViTImageProcessor

    MobileViTImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    build("resnet").save_pretrained(tmp_path)
    model = leenet_fx.create_model(f"hf:{tmp_path}")
    assert "may swap channels" in caplog.text
    assert leenet_fx.attach(model).spec.image_shape == (3, 32, 32)


def test_models_of_transformers_on_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from leenet_fx.cli.app import app

    runner = CliRunner()
    result = runner.invoke(app, ["inspect", "hf/resnet", "--format", "json"])
    assert result.exit_code == 0
    network = json.loads(result.stdout)
    names = [candidate["name"] for candidate in network["candidates"]]
    assert len(names) == 16
    assert names[0] == "resnet.encoder.stages.0.layers.0"
    build("vit").save_pretrained(tmp_path)
    result = runner.invoke(app, ["inspect", f"hf:{tmp_path}"])
    assert result.exit_code == 0
    assert "vit.layers.1" in result.stdout
    result = runner.invoke(app, ["inspect", "hf/resnett"])
    assert "Did you mean 'resnet'" in str(result.exception)
