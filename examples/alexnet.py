"""Exits on torchvision's AlexNet.

    python examples/alexnet.py                        # trained from scratch on digits
    python examples/alexnet.py --data photos/         # your images, one folder per class
    python examples/alexnet.py --data photos/ --pretrained

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

from common import Recipe, run
from torch import nn
from torchvision import models


def build(num_classes: int) -> nn.Module:
    """Return AlexNet without weights; its smallest image size is 63 pixels."""
    return models.alexnet(num_classes=num_classes)


if __name__ == "__main__":
    run("torchvision/alexnet", build, Recipe(size=64, epochs=3, lr=3e-4))
