"""Exits on torchvision's VGG-11 with batch norm: a chain of layers, cut after each of them.

    python examples/vgg.py                        # trained here on digits
    python examples/vgg.py --data photos/         # your images, one folder a class
    python examples/vgg.py --data photos/ --pretrained

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

from common import Recipe, run
from torch import nn
from torchvision import models


def build(num_classes: int) -> nn.Module:
    """VGG-11 for small images: of 32 x 32 pixels one is left, too few for three large layers."""
    model = models.vgg11_bn(num_classes=num_classes, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    return model


if __name__ == "__main__":
    run("torchvision/vgg11_bn", build, Recipe(size=32, epochs=2, lr=1e-3))
