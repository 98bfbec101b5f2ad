"""Networks, images and answers of the serving benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import WORK
from new_classifier import CASES
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import leenet_fx
from leenet_fx.serving import open_network
from leenet_fx.serving.served_network import Answers, ServedNetwork, ServedPoint
from leenet_fx.serving.torch_network import TorchNetwork

COUNT = 256
"""Number of different images."""

SHARES = (0.5, 0.25, 0.25)
"""Shares of the images at two exits and the final classifier, forced by thresholds."""

SIZES = {"resnet18": 224, "resnet18-small": 64, "lite0": 160}
EXITS = [0.3, 0.6]
LITE0 = CASES[0]


def folder_of(name: str) -> Path:
    """Return the folder of a network."""
    return WORK / f"serve-{name}"


def missing(name: str, data: Path, models: Path) -> Path | None:
    """Return the first file or folder that a network needs and that is missing."""
    if name != "lite0":
        return None
    needed = (data / LITE0.data, models / LITE0.weights)
    return next((path for path in needed if not path.exists()), None)


def prepare(name: str, data: Path, models: Path) -> Path:
    """Save a network with forced thresholds, its images, and the answers of `predict`.

    Args:
        name: a key of `SIZES`.
        data: folder of the data sets.
        models: folder of the weights.

    Returns:
        Its folder; one that exists is kept.
    """
    folder = folder_of(name)
    if (folder / "images.safetensors").exists():
        return folder
    torch.manual_seed(0)
    model, images = _backbone(name, data, models)
    ee = leenet_fx.attach(model, EXITS, example_inputs=images[:1], name=_library_name(name))
    ee.eval()
    ee.policy = leenet_fx.MaxProbability(_thresholds(ee, images))
    with torch.inference_mode():
        found = [ee.predict(part) for part in images.split(16)]
    exits = torch.cat([part.exit_index for part in found])
    labels = torch.cat([part.logits.argmax(1) for part in found])
    leenet_fx.save(ee, folder / "saved", backbone=True)
    save_file(model.state_dict(), folder / "backbone.safetensors")
    save_file(
        {"images": images, "exits": exits.contiguous(), "labels": labels.contiguous()},
        folder / "images.safetensors",
    )
    return folder


def _library_name(name: str) -> str:
    return "timm/tf_efficientnet_lite0" if name == "lite0" else "timm/resnet18"


def _backbone(name: str, data: Path, models: Path) -> tuple[nn.Module, Tensor]:
    size = SIZES[name]
    if name != "lite0":
        model = leenet_fx.create_model("timm/resnet18").eval()
        generator = torch.Generator().manual_seed(1)
        # Images of few frequencies differ more in their confidences than white noise.
        coarse = torch.randn(COUNT, 3, 7, 7, generator=generator)
        return model, nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    backbone = LITE0.build(models / LITE0.weights)
    source = leenet_fx.open_data(data / LITE0.data)
    transform = leenet_fx.make_transform(backbone, (3, size, size))
    shuffle = torch.Generator().manual_seed(0)
    batch = next(iter(source.loader("test", transform, COUNT, shuffle=shuffle)))[0]
    return backbone, batch.contiguous()


def _thresholds(ee: leenet_fx.EarlyExitModule, images: Tensor) -> list[float]:
    """Return the thresholds at which the images exit in `SHARES`."""
    with torch.inference_mode():
        outputs = [ee.all_exits(part).logits for part in images.split(16)]
    left = torch.ones(len(images), dtype=torch.bool)
    thresholds = []
    for index, share in enumerate(SHARES[:-1]):
        logits = torch.cat([part[index] for part in outputs])
        confidence = logits.float().softmax(1).amax(1)
        kept = confidence[left].sort(descending=True).values
        number = round(share * len(images))
        threshold = float((kept[number - 1] + kept[number]) / 2)
        thresholds.append(threshold)
        left &= confidence < threshold
    return thresholds


def stored(folder: Path) -> dict[str, Tensor]:
    """Return "images" (n, C, H, W), "exits" and "labels" (n,) of a folder."""
    return load_file(folder / "images.safetensors")


class Backbone(ServedNetwork):
    """A network without exits: a single stage."""

    def __init__(self, network: TorchNetwork, model: nn.Module) -> None:
        self.model = model
        self.name, self.image_shape = network.name, network.image_shape
        self.num_classes, self.class_names = network.num_classes, network.class_names
        self.exit_names = ("final classifier",)
        self.points = {"saved": ServedPoint("saved", (1.0,))}
        self.default_point = "saved"
        self.transform = network.transform
        self.num_stages = 1

    def first_group(self, images: Sequence[NDArray[np.float32]], numbers: Sequence[int]) -> Any:
        return torch.from_numpy(np.stack(images)), list(numbers)

    def join(self, stage: int, groups: Sequence[Any]) -> Any:
        images, numbers = zip(*groups, strict=True)
        return torch.cat(images), [number for part in numbers for number in part]

    @torch.inference_mode()
    def run(self, stage: int, point: str, group: Any) -> tuple[list[Answers], Any | None]:
        images, numbers = group
        best, labels = self.model(images).softmax(1).max(1)
        return [Answers(0, numbers, labels.tolist(), best.tolist())], None

    def probabilities(
        self, image: NDArray[np.float32], point: str, last: int
    ) -> dict[int, NDArray[np.float32]]:
        raise NotImplementedError


def open_served(folder: Path, kind: str) -> ServedNetwork:
    """Open a network for a server.

    Args:
        folder: from `prepare`.
        kind: "exits", or "backbone" for the network without them.
    """
    network = open_network(folder / "saved")
    if kind == "exits":
        return network
    assert isinstance(network, TorchNetwork)
    model = leenet_fx.create_model(network.name).eval()
    model.load_state_dict(load_file(folder / "backbone.safetensors"))
    return Backbone(network, model)
