"""Small networks and the zoo that tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from leenet_fx.parts.branches import list_branches

# name → (builder options, image size that is quick, another size the model takes or None)
ZOO = {
    "torchvision/alexnet": ({}, 96, 128),
    "torchvision/vgg11_bn": ({}, 64, 96),
    "torchvision/vgg16": ({}, 64, 96),
    "torchvision/resnet18": ({}, 64, 96),
    "torchvision/resnet50": ({}, 64, 96),
    "torchvision/densenet121": ({}, 64, 96),
    "torchvision/googlenet": ({}, 64, 96),
    "torchvision/mobilenet_v3_small": ({}, 64, 96),
    "torchvision/efficientnet_b0": ({}, 64, 96),
    "torchvision/convnext_tiny": ({}, 64, 96),
    "torchvision/vit_b_16": ({"image_size": 64}, 64, None),
    "torchvision/swin_t": ({}, 64, 96),
    "timm/vgg11_bn": ({}, 64, 96),
    "timm/vgg16": ({}, 64, 96),
    "timm/resnet18": ({}, 64, 96),
    "timm/resnet50": ({}, 64, 96),
    "timm/densenet121": ({}, 64, 96),
    "timm/inception_v3": ({}, 96, 128),
    "timm/mobilenetv3_small_100": ({}, 64, 96),
    "timm/efficientnet_b0": ({}, 64, 96),
    "timm/convnext_tiny": ({}, 64, 96),
    "timm/vit_base_patch16_224": ({"img_size": 64}, 64, None),
    "timm/swin_tiny_patch4_window7_224": ({}, 224, None),
    "timm/levit_128": ({}, 224, None),
}

# The blocks a person would count.
BLOCKS = {
    "torchvision/alexnet": 7,
    "torchvision/vgg11_bn": 10,
    "torchvision/vgg16": 15,
    "torchvision/resnet18": 8,
    "torchvision/resnet50": 16,
    "torchvision/densenet121": 58,
    "torchvision/googlenet": 9,
    "torchvision/mobilenet_v3_small": 11,
    "torchvision/efficientnet_b0": 16,
    "torchvision/convnext_tiny": 18,
    "torchvision/vit_b_16": 12,
    "torchvision/swin_t": 12,
    "timm/vgg11_bn": 9,
    "timm/vgg16": 14,
    "timm/resnet18": 8,
    "timm/resnet50": 16,
    "timm/densenet121": 58,
    "timm/inception_v3": 11,
    "timm/mobilenetv3_small_100": 11,
    "timm/efficientnet_b0": 16,
    "timm/convnext_tiny": 18,
    "timm/vit_base_patch16_224": 12,
    "timm/swin_tiny_patch4_window7_224": 12,
    "timm/levit_128": 14,
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.act(x + self.conv2(self.act(self.bn(self.conv1(x)))))


class TinyNet(nn.Module):
    """Four residual blocks, 3x16x16 images, a dropout in the head."""

    def __init__(self, classes: int = 5, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)

    def forward(self, x, scale: float = 1.0):
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.fc(self.dropout(x)) * scale


def branches_of_images() -> list[str]:
    """Branches that read maps of images; 'lgvit' reads tokens only."""
    return [name for name in list_branches() if name != "lgvit"]


def tiny(seed: int = 0, **options) -> TinyNet:
    """A TinyNet whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(seed)
    model = TinyNet(**options)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 16, 16))
    return model.eval()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(ee, batch, exit_index):
    """Computes every exit for every sample and picks."""
    with torch.no_grad():
        logits = torch.stack(ee.all_exits(batch).logits)
    return logits[exit_index, torch.arange(len(batch))]


def close(a, b, tolerance):
    """Equal within `tolerance` of the largest value."""
    scale = max(1.0, float(b.detach().abs().max()))
    return float((a - b).detach().abs().max()) <= tolerance * scale


def shared(name: str) -> Path | None:
    """A file or folder of the images and weights that benchmarks use, where they are at hand."""
    root = Path(os.environ.get("LEENET_FX_SHARED", Path(__file__).parents[2] / "shared"))
    return root / name if (root / name).exists() else None
