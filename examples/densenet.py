"""Exits on torchvision's DenseNet-121, whose layers read the outputs of all earlier layers.

    python examples/densenet.py                        # trained from scratch on digits
    python examples/densenet.py --data photos/         # your images, one folder per class
    python examples/densenet.py --data photos/ --pretrained

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

from common import Recipe, run
from torch import nn
from torchvision import models


def build(num_classes: int) -> nn.Module:
    """Return DenseNet-121 without weights."""
    return models.densenet121(num_classes=num_classes)


if __name__ == "__main__":
    run("torchvision/densenet121", build, Recipe(size=32, epochs=3, lr=3e-3))
