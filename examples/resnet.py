"""Exits on torchvision's ResNet-18, between residual blocks.

    python examples/resnet.py                        # trained from scratch on digits
    python examples/resnet.py --data photos/         # your images, one folder per class
    python examples/resnet.py --data photos/ --pretrained

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

from common import Recipe, run
from torch import nn
from torchvision import models


def build(num_classes: int) -> nn.Module:
    """Return ResNet-18 without weights."""
    return models.resnet18(num_classes=num_classes)


if __name__ == "__main__":
    run("torchvision/resnet18", build, Recipe(size=32, epochs=3, lr=3e-3))
