"""From data to an operating point, shared by alexnet.py, vgg.py, resnet.py, densenet.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leenet_fx
from leenet_fx.data.splits import Data

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

QUICK_BATCHES = 4
"""Number of batches that --quick reads of each split."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of training from scratch on small images.

    Attributes:
        size: side of the images, in pixels.
        epochs: number of epochs.
        lr: highest learning rate.
    """

    size: int
    epochs: int
    lr: float


def run(
    name: str,
    build: Callable[[int], nn.Module],
    recipe: Recipe,
) -> None:
    """Train or load a backbone, attach and train exits, choose thresholds, and evaluate them.

    Args:
        name: `torchvision/NAME`, for --pretrained and --weights.
        build: returns an untrained network for a number of classes.
        recipe: hyperparameters of its training.
    """
    options = parse_options(name, recipe)
    torch.manual_seed(options.seed)
    data = leenet_fx.open_data(options.data, download=options.download)
    shape = (3, options.size, options.size)

    if options.pretrained or options.weights:
        model = trained_model(name, options.weights)
        transform = leenet_fx.make_transform(model, shape, name=name)
    else:
        model = build(len(data.classes))
        transform = leenet_fx.make_transform(model, shape)
        # Flips would change the meaning of digits, but not of photographs.
        augment = data.name != "digits"
        augmented = leenet_fx.make_transform(model, shape, augment=augment)
        print(f"Training {name} from scratch on {data.name}, {options.epochs} epochs ...")
        train(model, read(data, "train", augmented, options), options.epochs, recipe.lr)
    model.to(DEVICE).eval()

    ee = leenet_fx.attach(
        model,
        options.strategy,
        # If the data set has another number of classes, the final classifier is replaced.
        num_classes=len(data.classes),
        example_inputs=torch.zeros(1, *shape, device=DEVICE),
        name=name,
    )
    print(ee)

    epochs = 1 if options.quick else 12
    leenet_fx.fit(
        ee,
        read(data, "train", transform, options),
        epochs={"exits": epochs, "final": epochs if ee.spec.classifier_is_new else 0},
        # Run the frozen backbone once over the images instead of once per epoch.
        cache=True,
        seed=options.seed,
    )
    # Images that nothing was fitted to: exits are overconfident on those of the train split.
    held_out = read(data, "calibration", transform, options)
    print(leenet_fx.calibrate(ee, held_out, max_drop=options.max_drop))
    print(leenet_fx.evaluate(ee, read(data, "test", transform, options)))


def parse_options(name: str, recipe: Recipe) -> argparse.Namespace:
    """Parse the command line; --quick and weights change defaults."""
    parser = argparse.ArgumentParser(description=f"Early exits on {name}.")
    add = parser.add_argument
    add(
        "--data", default="digits", help="folder, tar file, or torchvision data set such as CIFAR10"
    )
    add("--download", action="store_true", help="let torchvision download the data set")
    add("--pretrained", action="store_true", help="torchvision's ImageNet weights; no training")
    add("--weights", type=Path, help="state dict for torchvision's network")
    add("--size", type=int, help=f"side of the images (224 with weights, else {recipe.size})")
    add("--epochs", type=int, default=recipe.epochs, help="epochs of training from scratch")
    add("--batch-size", type=int, default=64)
    add("--strategy", default="auto", help="placement; see leenet-fx strategies")
    add("--max-drop", type=float, default=0.01, help="highest accepted loss of accuracy")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="a few batches of each split, to test the program")
    options = parser.parse_args()
    if options.pretrained and options.weights:
        parser.error("--pretrained and --weights exclude each other.")
    if options.size is None:
        options.size = 224 if options.pretrained or options.weights else recipe.size
    if options.quick:
        options.epochs = 1
    return options


def trained_model(name: str, weights: Path | None) -> nn.Module:
    """Return torchvision's network with its ImageNet weights, or with those of a file."""
    if weights is None:
        return leenet_fx.create_model(name, pretrained=True)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    # The last tensor is the bias of the final classifier, with one element per class.
    classes = len(list(state.values())[-1])
    model = leenet_fx.create_model(name, num_classes=classes)
    model.load_state_dict(state)
    return model


def read(
    data: Data,
    split: str,
    transform: Callable[[Any], Tensor],
    options: argparse.Namespace,
) -> Iterable[Any]:
    """Return batches (images, labels) of a split in random order, a few with --quick."""
    shuffle = torch.Generator().manual_seed(options.seed)
    loader = data.loader(split, transform, options.batch_size, shuffle=shuffle)
    return list(islice(loader, QUICK_BATCHES)) if options.quick else loader


def train(model: nn.Module, batches: Iterable[Any], epochs: int, lr: float) -> None:
    """Train with AdamW and the one-cycle learning rate schedule."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * len(batches)
    )
    for _ in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
