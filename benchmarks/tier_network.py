"""The network of `tiers.py`: tf_efficientnet_lite0 with exits fitted to images of Caltech-101."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx.data.splits import Data
from leenet_fx.data.transforms import make_transform
from leenet_fx.surgery.module import EarlyExitModule

NETWORK, CLASSES, PIXELS = "tf_efficientnet_lite0", 101, 160
EXITS = ("blocks.2.1", "blocks.3.2", "blocks.5.0")
EPOCHS, BUDGET = 12, 0.6


def fitted(data: Data, weights: Path, count: int) -> tuple[EarlyExitModule, Any]:
    """Return the network with a fitted classifier and exits, and the transform of images."""
    model = timm.create_model(NETWORK)
    model.load_state_dict(load_file(weights))
    example = torch.zeros(1, 3, PIXELS, PIXELS)
    ee = leenet_fx.attach(model.eval(), EXITS, example_inputs=example, num_classes=CLASSES)
    transform = make_transform(model, example.shape[1:], name=NETWORK)
    train, calibration = (
        DataLoader(TensorDataset(*as_tensors(some_images(data, split, n), transform)), 64)
        for split, n in (("train", count), ("calibration", count // 4))
    )
    leenet_fx.fit(ee, train, epochs=EPOCHS, cache=True)
    leenet_fx.set_budget(ee, calibration, BUDGET)
    return ee.eval(), transform


def some_images(data: Data, split: str, count: int) -> list[tuple[Any, int]]:
    """Return evenly spaced images of a split, in a random order."""
    subset = data.splits[split]
    chosen = torch.arange(len(subset))[:: max(1, len(subset) // count)][:count]
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
    return [subset[int(index)] for index in chosen[order]]


def as_tensors(pairs: Sequence[tuple[Any, int]], transform: Any) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, H, W) and labels (n,)."""
    images = torch.stack([transform(image) for image, _ in pairs])
    return images, torch.tensor([label for _, label in pairs])
