"""What the CIFAR-10 benchmarks share: backbones, images, and heads with convolutions.

The data are train.tar and test.tar (32x32 images, one folder a class), the weights
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
from leenet_fx.cli.setup import build
from leenet_fx.data.splits import Data, open_data
from leenet_fx.data.transforms import make_transform

FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / "fitted"
"""Fitted heads, which several benchmarks use; not kept in the repository."""

NETWORKS = {"resnet20": 0.8852, "resnet56": 0.9006}
"""Plain accuracy on the report images, as published with the weights."""

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
        self.weights = weights / f"{name}_cifar10.safetensors"
        model = build(f"{FACTORY}:{name}", weights=self.weights)
        # Convolutions in bfloat16 are twice as fast so.
        self.model: nn.Module = model.to(memory_format=torch.channels_last)
        self.images: Data = open_data(data)

    def loader(
        self, split: str, *, augment: bool = False, seed: int | None = None, batch: int = BATCH
    ) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Images of a split; shuffled where a seed is given."""
        transform = make_transform(self.model, (3, 32, 32), augment=augment)
        shuffle = None if seed is None else torch.Generator().manual_seed(seed)
        return self.images.loader(split, transform, batch, shuffle=shuffle)


def fitted_heads(cifar: Cifar10, seed: int) -> tuple[leenet_fx.EarlyExitModule, float]:
    """The frozen backbone with heads of convolutions behind few exits, fitted on augmented images.

    Returns:
        The network, and the seconds it took to train; a run that is over is read, one that was cut
        short goes on.
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
    # Whatever augments draws from the global generators.
    torch.manual_seed(seed)
    found = leenet_fx.fit(
        ee,
        cifar.loader("train", augment=True, seed=seed, batch=HEAD_BATCH),
        method="distilled",
        epochs=HEAD_EPOCHS[name],
        precision="bf16-mixed",
        out=WORK / f"{name}-{seed}",
        resume=True,
        seed=seed,
    )
    return ee, sum(epoch.seconds for epoch in found.history)


def arguments(description: str) -> argparse.Namespace:
    """What every CIFAR-10 benchmark asks for; ends the program where the files are missing."""
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
    """Fits the heads alone."""
    options = arguments("Fits the heads that the CIFAR-10 benchmarks use.")
    for seed in range(options.seeds):
        for name in options.networks:
            start = time.perf_counter()
            ee, seconds = fitted_heads(Cifar10(name, options.data, options.weights), seed)
            say(name, seed, ee.spec.placement.names, seconds, time.perf_counter() - start)


def say(name: str, seed: int, exits: Sequence[str], seconds: float, now: float) -> None:
    """One line on stderr."""
    print(
        f"{name}, seed {seed}, exits {', '.join(exits)}: trained {seconds:.0f} s, {now:.0f} s now",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
