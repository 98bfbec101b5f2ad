"""The ResNets for CIFAR of He et al. 2015, section 4.2, as a model file.

    leenet-fx inspect examples/cifar_resnet.py:resnet20 --strategy every

The keys of the state dict are those of most published CIFAR weights.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Subsample and pad with zero channels if the shape changes."""
        if self.padding == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """6n + 2 layers: a convolution, three layers of n blocks, a linear classifier.

    Args:
        n: number of residual blocks per layer.
        num_classes: number of classes.
    """

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(n, 16, 16, stride=1)
        self.layer2 = self._layer(n, 16, 32, stride=2)
        self.layer3 = self._layer(n, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        # As in timm's models: leenet_fx reads size and normalisation of images from it.
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": num_classes,
        }

    @staticmethod
    def _layer(n: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20: 0.27 M parameters, 40.6 M multiply-adds."""
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-32: 0.46 M parameters, 68.9 M multiply-adds."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-44: 0.66 M parameters, 97.2 M multiply-adds."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-56: 0.85 M parameters, 125.5 M multiply-adds."""
    return CifarResNet(9, num_classes)
