"""MSDNet (Huang et al. 2018, Multi-Scale Dense Networks): a network made for early exits.

    python examples/msdnet.py                         # digits
    python examples/msdnet.py --data CIFAR10 --download
    leenet-fx inspect examples/msdnet.py:msdnet       # as a model file of your own

Classifiers want coarse features, and most networks make these last. Here every layer holds feature
maps of several scales, the coarsest from the first layer on, and all classifiers read that one. The
network and its exits are trained together from nothing; then thresholds are set for budgets.

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
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def bottleneck(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution to four times the outputs, as in DenseNet, then one of 3x3."""
    return nn.Sequential(
        convolution(inputs, 4 * outputs, 1), convolution(4 * outputs, outputs, 3, stride)
    )


def condense(inputs: int, outputs: int) -> nn.Sequential:
    """A classifier up to its linear layer: two strided convolutions, then the average."""
    return nn.Sequential(
        convolution(inputs, outputs, 3, stride=2),
        convolution(outputs, outputs, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class FirstLayer(nn.Module):
    """Makes the scales: each by a strided convolution of the finer one."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            convolution(before, after, 3, stride=1 if index == 0 else 2)
            for index, (before, after) in enumerate(zip([3, *channels], channels, strict=False))
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images (B, 3, H, W) to one map a scale, fine to coarse."""
        maps = []
        for scale in self.scales:
            images = scale(images)
            maps.append(images)
        return maps


class Layer(nn.Module):
    """Grows scales by what is new: half of it from the scale itself, half from the finer one.

    A map holds all that earlier layers made at its scale, so connections are dense.

    Args:
        channels: of each scale's map, fine to coarse; this layer adds its own.
        growth: channels that are new at each scale.
        grows: the scales that grow, each with whether it reads the finer one.
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
        """One map (B, C, H, W) a scale, fine to coarse, to the same with more channels."""
        maps = list(maps)
        # Fine to coarse: a scale reads what the finer one, which lags behind it, has only just got.
        for key, along in self.along.items():
            scale = int(key)
            new = [along(maps[scale])]
            if key in self.down:
                new.append(self.down[key](maps[scale - 1]))
            maps[scale] = torch.cat([maps[scale], *new], 1)
        return maps


class MSDNet(nn.Module):
    """A classifier whose layers all have a coarse map to hang an exit on.

    Two savings are the paper's. Lazy evaluation: a map is made just before the first classifier
    that depends on it, so each finer scale lags one layer behind the next. Network reduction: along
    the depth one scale after another stops; the 1x1 convolutions that halve the channels where one
    does are left out.

    Args:
        depth: layers after the first.
        scales: feature maps a layer.
        growth: channels that a layer adds to the finest scale; twice as many to each next one.
        channels: of the finest scale in the first layer, likewise.
        width: of the classifier's convolutions; the paper has 128, for a deeper network.
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
        held = [channels * 2**scale for scale in range(scales)]
        grown = [growth * 2**scale for scale in range(scales)]
        self.first = FirstLayer(held)
        # How often each scale grows: of three, the finest stops after a third of the depth.
        lengths = [depth * (scale + 1) // scales for scale in range(scales)]
        self.layers = nn.ModuleList()
        for step in range(depth):
            grows: dict[int, bool] = {}
            for scale in range(scales):
                # How often it has grown; below 0, no classifier depends on it yet.
                layer = step - (scales - 1 - scale)
                if 0 <= layer < lengths[scale]:
                    grows[scale] = scale > 0 and layer <= lengths[scale - 1]
            self.layers.append(Layer(held, grown, grows))
        self.condense = condense(held[-1], width)
        self.linear = nn.Linear(width, num_classes)
        # Read by leenet_fx for the size and the normalisation of images, as timm's models have it.
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 32, 32),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "num_classes": num_classes,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, H, W) to logits (B, classes)."""
        maps = self.first(images)
        for layer in self.layers:
            maps = layer(maps)
        return self.linear(self.condense(maps[-1]))


def msdnet(num_classes: int = 10) -> MSDNet:
    """Three scales and eight layers after the first, for 32x32 pixels."""
    return MSDNet(num_classes=num_classes)


class Coarsest(Neck):
    """The network's own kind of classifier for exits; it reads the coarsest map alone.

    All scales cross a cut, for later layers read them, so an exit is offered all; "pool" would
    average each, and "conv" refuses maps of several sizes.
    """

    def __init__(self, site: ExitSite, width: int = 64) -> None:
        super().__init__(site, width)
        sizes = [math.prod(feature.size) for feature in site.features]
        self.index = sizes.index(min(sizes))
        self.layers = condense(site.features[self.index].channels, width)

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return (features[self.index],)

    def forward(self, *pooled: Tensor) -> Tensor:
        # The learning rate of what follows is meant for inputs of spread width^-0.5.
        return self.layers(*pooled) / math.sqrt(self.width)


def coarsest(site: ExitSite, **options: Any) -> Branch:
    """A branch of the library's parts on that body: a linear head, a gate nobody trains."""
    return compose(Coarsest, site, **options)


def main() -> None:
    """Trains network and exits together, and sets thresholds for a few budgets."""
    # Here, so that `leenet-fx inspect` can read this file without the others.
    from common import DEVICE, read

    options = parse_options()
    torch.manual_seed(options.seed)
    data = leenet_fx.open_data(options.data, download=options.download)
    model = msdnet(len(data.classes)).to(DEVICE)
    shape = model.pretrained_cfg["input_size"]

    # An exit after every second layer; the last of them is the network's own classifier.
    names = [f"layers.{index}" for index in range(1, len(model.layers) - 1, 2)]
    ee = leenet_fx.attach(model, names, branch=coarsest)

    # A mirrored digit is no digit; photographs may be mirrored and shifted.
    augmented = leenet_fx.make_transform(model, shape, augment=data.name != "digits")
    print(f"Training on {data.name}, {options.epochs} epochs ...")
    leenet_fx.fit(
        ee,
        read(data, "train", augmented, options),
        method=leenet_fx.get_method("msdnet", recipe="joint"),
        epochs=options.epochs,
        # Twice the method's own rate, which is for a backbone that has been trained.
        lr=0.06,
        seed=options.seed,
    )
    print(ee)

    transform = leenet_fx.make_transform(model, shape)
    # What exits say of these images is asked for once, for all budgets.
    kept = leenet_fx.cache_features(ee, read(data, "calibration", transform, options))
    report = read(data, "test", transform, options)
    for budget in options.budgets:
        leenet_fx.set_budget(ee, kept, budget, solver="exponential")
        found = leenet_fx.evaluate(ee, report)
        left = " ".join(f"{100 * row.share:.0f}" for row in found.exits)
        print(
            f"Budget {budget:.2f}: {found.samples} images, accuracy {100 * found.accuracy:.2f} % "
            f"(last classifier for all {100 * found.backbone_accuracy:.2f} %), "
            f"{found.relative_flops:.2f} of the FLOPs; left at exits: {left} %"
        )
    kept.close()


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="MSDNet, start to end.")
    add = parser.add_argument
    add("--data", default="digits", help="folder, tar file, torchvision data set such as CIFAR10")
    add("--download", action="store_true", help="let torchvision download the data set")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=64)
    add(
        "--budgets",
        type=float,
        nargs="+",
        default=[0.3, 0.5, 0.7],
        help="mean FLOPs an image, relative to the network without exits",
    )
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="a few batches of everything: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.epochs = 1
    return options


if __name__ == "__main__":
    main()
