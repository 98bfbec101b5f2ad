"""MSDNet (Huang et al. 2018, Multi-Scale Dense Networks): a network designed for early exits.

    python examples/msdnet.py                         # digits
    python examples/msdnet.py --data CIFAR10 --download
    leenet-fx inspect examples/msdnet.py:msdnet       # as a model file

Classifiers need coarse features, which most networks compute last. Here every layer has feature
maps of several scales, and all classifiers read the coarsest one, which exists from the first layer
on. Network and exits are trained jointly from scratch; then thresholds are set for budgets.

A few minutes on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor, nn

import leenet_fx
from leenet_fx.parts.branches import Branch
from leenet_fx.parts.compose import compose
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.parts.necks import Neck


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def bottleneck(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 1x1 convolution to four times the outputs, as in DenseNet, then one of 3x3."""
    return nn.Sequential(
        convolution(inputs, 4 * outputs, 1), convolution(4 * outputs, outputs, 3, stride)
    )


def condense(inputs: int, outputs: int) -> nn.Sequential:
    """Return a classifier without its linear layer: two strided convolutions and pooling."""
    return nn.Sequential(
        convolution(inputs, outputs, 3, stride=2),
        convolution(outputs, outputs, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class FirstLayer(nn.Module):
    """The first layer: each scale is a strided convolution of the finer one."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            convolution(before, after, 3, stride=1 if index == 0 else 2)
            for index, (before, after) in enumerate(zip([3, *channels], channels, strict=False))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) to one feature map per scale, fine to coarse."""
        maps = []
        for scale in self.scales:
            images = scale(images)
            maps.append(images)
        return maps


class Layer(nn.Module):
    """A dense layer: new channels, half from the scale itself and half from the finer one.

    A feature map contains the channels of all earlier layers at its scale.

    Args:
        channels: number of channels of each scale, fine to coarse; increased by this layer's.
        growth: number of new channels at each scale.
        grows: scales with new channels; whether the scale reads the finer one.
    """

    def __init__(self, channels: list[int], growth: list[int], grows: dict[int, bool]) -> None:
        super().__init__()
        self.along, self.down = nn.ModuleDict(), nn.ModuleDict()
        for scale, reads_finer in grows.items():
            new = growth[scale]
            if reads_finer:
                self.down[str(scale)] = bottleneck(channels[scale - 1], new // 2, stride=2)
                new -= new // 2
            self.along[str(scale)] = bottleneck(channels[scale], new)
            channels[scale] += growth[scale]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Add channels to one feature map (B, C, H, W) per scale, fine to coarse."""
        maps = list(maps)
        # Fine to coarse, since a scale reads the new channels of the finer one.
        for key, along in self.along.items():
            scale = int(key)
            new = [along(maps[scale])]
            if key in self.down:
                new.append(self.down[key](maps[scale - 1]))
            maps[scale] = torch.cat([maps[scale], *new], 1)
        return maps


class MSDNet(nn.Module):
    """A classifier whose layers all have a coarse feature map that an exit can read.

    Two reductions of cost are the paper's. Lazy evaluation: a feature map is computed just before
    the first classifier that depends on it, so each finer scale is one layer behind the next.
    Network reduction: the finer scales end earlier. The paper's 1x1 convolutions that halve the
    number of channels there are omitted.

    Args:
        depth: number of layers after the first.
        scales: number of feature maps per layer.
        growth: number of channels that a layer adds to the finest scale; doubled at each next one.
        channels: number of channels of the finest scale in the first layer; doubled likewise.
        width: number of channels of the classifier's convolutions; 128 in the paper's networks.
        num_classes: number of classes.
    """

    def __init__(
        self,
        depth: int = 8,
        scales: int = 3,
        growth: int = 6,
        channels: int = 16,
        width: int = 64,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        total = [channels * 2**scale for scale in range(scales)]
        added = [growth * 2**scale for scale in range(scales)]
        self.first = FirstLayer(total)
        # Number of layers of each scale: of three scales, the finest has a third of the depth.
        lengths = [depth * (scale + 1) // scales for scale in range(scales)]
        self.layers = nn.ModuleList()
        for step in range(depth):
            grows: dict[int, bool] = {}
            for scale in range(scales):
                # Index of the scale's layer; negative while no classifier depends on it.
                layer = step - (scales - 1 - scale)
                if 0 <= layer < lengths[scale]:
                    grows[scale] = scale > 0 and layer <= lengths[scale - 1]
            self.layers.append(Layer(total, added, grows))
        self.condense = condense(total[-1], width)
        self.linear = nn.Linear(width, num_classes)
        # As in timm's models: leenet_fx reads size and normalisation of images from it.
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": num_classes,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, classes)."""
        maps = self.first(images)
        for layer in self.layers:
            maps = layer(maps)
        return self.linear(self.condense(maps[-1]))


def msdnet(num_classes: int = 10) -> MSDNet:
    """Return a network of three scales and eight layers after the first, for 32x32 pixels."""
    return MSDNet(num_classes=num_classes)


class Coarsest(Neck):
    """The convolutions of the paper's classifiers, on the coarsest feature map.

    An exit can read every scale, since later layers need all of them. The "pool" neck would pool
    each scale, and the "conv" neck requires maps of equal size.
    """

    def __init__(self, site: ExitSite, width: int = 64) -> None:
        super().__init__(site, width)
        sizes = [math.prod(feature.size) for feature in site.features]
        self.index = sizes.index(min(sizes))
        self.layers = condense(site.features[self.index].channels, width)

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (features[self.index],)

    def forward(self, *pooled: Tensor) -> Tensor:
        # The learning rate of heads assumes inputs with a standard deviation of width^-0.5.
        return self.layers(*pooled) / math.sqrt(self.width)


def coarsest(site: ExitSite, **options: Any) -> Branch:
    """Return a branch of this neck with the library's head and gate; the gate is not trained."""
    return compose(Coarsest, site, **options)


def main() -> None:
    """Train network and exits jointly, and set thresholds for some budgets."""
    # `leenet-fx inspect` loads this file without the others.
    from common import DEVICE, read

    options = parse_options()
    torch.manual_seed(options.seed)
    data = leenet_fx.open_data(options.data, download=options.download)
    model = msdnet(len(data.classes)).to(DEVICE)
    shape = model.pretrained_cfg["input_size"]

    # An exit after every second layer; after the last layer is the final classifier.
    names = [f"layers.{index}" for index in range(1, len(model.layers) - 1, 2)]
    ee = leenet_fx.attach(model, names, branch=coarsest)

    # Flips would change the meaning of digits, but not of photographs.
    augmented = leenet_fx.make_transform(model, shape, augment=data.name != "digits")
    print(f"Training on {data.name}, {options.epochs} epochs ...")
    leenet_fx.fit(
        ee,
        read(data, "train", augmented, options),
        method=leenet_fx.get_method("msdnet", recipe="joint"),
        epochs=options.epochs,
        # Twice the method's default, which is for a trained backbone.
        lr=0.06,
        seed=options.seed,
    )
    print(ee)

    transform = leenet_fx.make_transform(model, shape)
    # Features are computed once for all budgets.
    features = leenet_fx.cache_features(ee, read(data, "calibration", transform, options))
    test = read(data, "test", transform, options)
    for budget in options.budgets:
        leenet_fx.set_budget(ee, features, budget, solver="exponential")
        result = leenet_fx.evaluate(ee, test)
        shares = " ".join(f"{100 * row.share:.0f}" for row in result.exits)
        print(
            f"Budget {budget:.2f}: {result.samples} images, accuracy {100 * result.accuracy:.2f} % "
            f"(final classifier for all {100 * result.backbone_accuracy:.2f} %), "
            f"{result.relative_flops:.2f} of the FLOPs; exit distribution: {shares} %"
        )
    features.close()


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Joint training of MSDNet and its exits.")
    add = parser.add_argument
    add(
        "--data", default="digits", help="folder, tar file, or torchvision data set such as CIFAR10"
    )
    add("--download", action="store_true", help="let torchvision download the data set")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=64)
    add(
        "--budgets",
        type=float,
        nargs="+",
        default=[0.3, 0.5, 0.7],
        help="mean FLOPs per image, relative to the network without exits",
    )
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="a few batches of each split, to test the program")
    options = parser.parse_args()
    if options.quick:
        options.epochs = 1
    return options


if __name__ == "__main__":
    main()
