"""Exits on torchvision's VGG-11 with batch norm: a chain of layers, each followed by a candidate.

    python examples/vgg.py                        # trained from scratch on digits
    python examples/vgg.py --data photos/         # your images, one folder per class
    python examples/vgg.py --data photos/ --pretrained

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

from common import Recipe, run
from torch import nn
from torchvision import models


def build(num_classes: int) -> nn.Module:
    """Return VGG-11 for small images, whose last map of 1 x 1 pixel needs one linear layer only."""
    model = models.vgg11_bn(num_classes=num_classes, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    return model


if __name__ == "__main__":
    run("torchvision/vgg11_bn", build, Recipe(size=32, epochs=2, lr=1e-3))
