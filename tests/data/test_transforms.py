"""Transforms and loaders of images."""

import json

import pytest
import torch
from helpers import folder
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from leenet_fx import InputError, UnknownNameError, make_transform, open_data
from leenet_fx.data.transforms import TransformConfig, transform_config


def test_loaders_apply_the_transform_of_the_model(tmp_path):
    data = open_data(folder(tmp_path / "images"))
    model = torch.nn.Identity()
    model.pretrained_cfg = {"mean": (0.5, 0.0, 0.0), "std": (0.25, 1.0, 1.0)}
    loader = data.loader("train", make_transform(model, (3, 8, 8)), 16)
    x, labels = next(iter(loader))
    assert x.shape == (16, 3, 8, 8)
    assert labels.tolist() == [0] * 14 + [1] * 2
    blue = 255 * 100 // 255 / 255
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(0 - 0.5) / 0.25, 0.0, blue]), atol=0.01)
    grey = next(iter(data.loader("train", make_transform(torch.nn.Identity(), (1, 8, 8)), 4)))[0]
    assert grey.shape == (4, 1, 8, 8)
    augmented = make_transform(model, (3, 64, 64), augment=True)
    assert augmented(data.splits["train"][0][0]).shape == (3, 64, 64)
    assert make_transform(model, (3, 224, 224), augment=True)(
        Image.new("RGB", (300, 280))
    ).shape == (
        3,
        224,
        224,
    )


def test_torchvision_models_have_the_transform_of_their_weights():
    found = make_transform(torch.nn.Identity(), (3, 224, 224), name="torchvision/resnet18")
    image = Image.effect_noise((300, 280), 60).convert("RGB")
    from torchvision.models import ResNet18_Weights

    expected = ResNet18_Weights.DEFAULT.transforms()(image)
    assert float((found(image) - expected).abs().mean()) < 0.2


def gradient(height, width):
    values = torch.linspace(0, 255, height * width).reshape(height, width, 1).expand(-1, -1, 3)
    return Image.fromarray(values.to(torch.uint8).contiguous().numpy())


def test_values_that_are_given_replace_the_models():
    model = torch.nn.Identity()
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "crop_pct": 1.0}
    image = gradient(6, 6)
    pixels = to_tensor(image)
    made = make_transform(model, (3, 6, 6), mean=[0.1, 0.2, 0.3])(image)
    assert torch.allclose(made, normalize(pixels, [0.1, 0.2, 0.3], [0.2, 0.2, 0.2]))
    made = make_transform(model, (3, 6, 6), std=[0.5])(image)
    assert torch.allclose(made, normalize(pixels, [0.5, 0.4, 0.3], [0.5, 0.5, 0.5]))
    made = make_transform(model, (1, 6, 6), mean=[0.25], std=[2.0])(image)
    assert torch.allclose(made, normalize(pixels[:1], [0.25], [2.0]), atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_interpolation_is_pillows_filter(interpolation):
    model, image = torch.nn.Identity(), gradient(9, 9)
    expected = to_tensor(image.resize((5, 5), getattr(Image.Resampling, interpolation.upper())))
    made = make_transform(model, (3, 5, 5), mean=[0.0], std=[1.0], interpolation=interpolation)
    assert torch.allclose(made(image), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 8), {"mean": [0.1, 0.2]}, "mean must be one number or one for each of 3 channels"),
        ((1, 8, 8), {"std": [0.1, 0.2, 0.3]}, "std must be one number or one for each of 1"),
        ((3, 8, 8), {"std": [0.1, 0.0, 0.3]}, "std must be greater than 0"),
        ((3, 8, 8), {"std": [-1.0]}, "std must be greater than 0"),
        ((3, 8, 8), {"mean": [float("nan")]}, "mean must be one number"),
        ((4, 8, 8), {}, "1 or 3 channels"),
        ((784,), {}, "1 or 3 channels"),
        ((3, 8, 8), {"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
    ],
)
def test_values_that_do_not_fit_are_an_error(shape, options, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        make_transform(torch.nn.Identity(), shape, **options)


def test_a_configuration_is_stored_exactly():
    model = torch.nn.Identity()
    model.pretrained_cfg = {"mean": (1 / 3, 0.4, 0.3), "crop_pct": 0.9, "crop_mode": "squash"}
    config = transform_config(model, (3, 20, 30), std=[0.1], interpolation="box")
    assert TransformConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    values = config.to_dict()
    for key, value in [("std", [0.0] * 3), ("mean", "x"), ("image_shape", [2, 3]), ("std", None)]:
        with pytest.raises(InputError):
            TransformConfig.from_dict({**values, key: value})
    with pytest.raises(InputError):
        TransformConfig.from_dict({})


def test_a_bare_name_of_a_torchvision_model_has_its_transform():
    import torchvision

    model = torchvision.models.squeezenet1_1()
    bare = transform_config(model, (3, 224, 224), name="squeezenet1_1")
    assert bare == transform_config(model, (3, 224, 224), name="torchvision/squeezenet1_1")
    assert bare.crop_pct == 224 / 256
    own = transform_config(torch.nn.Identity(), (3, 224, 224), name="squeezenet1_1")
    assert own.crop_pct == 1.0
