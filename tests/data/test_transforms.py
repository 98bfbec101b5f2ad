"""Transforms and loaders of images."""

import torch
from helpers import folder
from PIL import Image

from leenet_fx import make_transform, open_data


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
