"""Backbones, images and trained convolutional branches of the CIFAR-10 benchmarks.

The data are train.tar and test.tar (32x32 images, one folder per class), the weights
resnet20_cifar10.safetensors and resnet56_cifar10.safetensors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import leenet_fx
from leenet_fx.cli.options import BackboneOptions
from leenet_fx.cli.setup import build
from leenet_fx.data.splits import Data, open_data
from leenet_fx.data.transforms import make_transform

FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / "fitted"
"""Folder of trained branches that several benchmarks use; not in the repository."""

NETWORKS = {"resnet20": 0.8852, "resnet56": 0.9006}
"""Accuracy of each backbone on the test split, as published with the weights."""

EXITS = {
    "resnet20": ("layer1.0", "layer2.1"),
    "resnet56": ("layer1.0", "layer2.0", "layer2.8"),
}
HEAD_EPOCHS = {"resnet20": 12, "resnet56": 6}
HEAD_BATCH = 128
BATCH = 512


class Cifar10:
    """A backbone and its images."""

    def __init__(self, name: str, data: Path, weights: Path) -> None:
        self.name = name
        self.folder = data
        self.weights = weights / f"{name}_cifar10.safetensors"
        model = build(f"{FACTORY}:{name}", BackboneOptions(weights=self.weights))
        # Convolutions in bfloat16 are twice as fast in this memory format.
        self.model: nn.Module = model.to(memory_format=torch.channels_last)
        self.images: Data = open_data(data)

    def loader(
        self, split: str, *, augment: bool = False, seed: int | None = None, batch: int = BATCH
    ) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Return batches of a split; shuffled if a seed is given."""
        transform = make_transform(self.model, (3, 32, 32), augment=augment)
        shuffle = None if seed is None else torch.Generator().manual_seed(seed)
        return self.images.loader(split, transform, batch, shuffle=shuffle)


def trained_branches(cifar: Cifar10, seed: int) -> tuple[leenet_fx.EarlyExitModule, float]:
    """Train few convolutional branches on the frozen backbone and augmented images.

    Returns:
        The network, and the seconds of training. A finished run is loaded, an interrupted one is
        resumed.
    """
    name = cifar.name
    ee = leenet_fx.attach(
        cifar.model,
        EXITS[name],
        method="distilled",
        branch="conv",
        branch_options={"gate": "history"},
        copy=False,
        name=name,
        seed=seed,
    )
    # Augmentation draws from the global generators.
    torch.manual_seed(seed)
    result = leenet_fx.fit(
        ee,
        cifar.loader("train", augment=True, seed=seed, batch=HEAD_BATCH),
        method="distilled",
        epochs=HEAD_EPOCHS[name],
        precision="auto",
        out=WORK / f"{name}-{seed}",
        resume=True,
        seed=seed,
    )
    return ee, sum(epoch.seconds for epoch in result.history)


def arguments(description: str) -> argparse.Namespace:
    """Parse the arguments of the CIFAR-10 benchmarks; exit if files are missing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    return options


def main() -> None:
    """Train the branches only."""
    options = arguments("Train the branches that the CIFAR-10 benchmarks use.")
    for seed in range(options.seeds):
        for name in options.networks:
            start = time.perf_counter()
            ee, seconds = trained_branches(Cifar10(name, options.data, options.weights), seed)
            report(name, seed, ee.spec.placement.names, seconds, time.perf_counter() - start)


def report(name: str, seed: int, exits: Sequence[str], seconds: float, elapsed: float) -> None:
    """Print one line on stderr."""
    print(
        f"{name}, seed {seed}, exits {', '.join(exits)}: training {seconds:.0f} s, "
        f"this run {elapsed:.0f} s",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
