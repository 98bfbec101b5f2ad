"""Images that are decoded once, held in memory, and augmented on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from leenet_fx.data.images import LabelledSubset, TransformedImages, open_files
from leenet_fx.data.splits import Data, open_data
from leenet_fx.data.transforms import build_transform, override, transform_config

BATCH = 500
PADDING = 4

_decoded: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
"""Images by folder, limit and transform, then by split: rows of a benchmark share them."""


def unseen_images(folder: Path, classes: Sequence[str]) -> LabelledSubset | None:
    """Return the images of `unseen.tar` in a folder; None if there is none.

    Args:
        folder: of a data set.
        classes: names of its classes.
    """
    file = folder / "unseen.tar"
    if not file.exists():
        return None
    files = open_files(file, classes=classes)
    return LabelledSubset(files, range(len(files)), files.targets)


@functools.cache
def opened(folder: Path) -> Data:
    """Return the files of a folder in splits, which are listed once for all rows of a benchmark."""
    return open_data(folder)


class InMemory:
    """The splits of a data set as tensors of 8-bit pixels, all of one size.

    Args:
        folder: with train and test, and perhaps `unseen.tar`, which becomes a fifth split.
        model: whose mean, standard deviation and way to resize images are taken.
        size: height and width.
        limit: number of images of each split, drawn at random; None takes all.
        device: of the batches.

    Attributes:
        classes: names.
    """

    def __init__(
        self,
        folder: Path,
        model: torch.nn.Module,
        size: int,
        *,
        limit: int | None = None,
        device: str = "cpu",
    ) -> None:
        data = opened(folder)
        self.classes = data.classes
        self.device = torch.device(device)
        self._splits: dict[str, LabelledSubset] = dict(data.splits)
        if (unseen := unseen_images(folder, data.classes)) is not None:
            self._splits["unseen"] = unseen
        config = transform_config(model, (3, size, size))
        unscaled = override(config, mean=(0.0,), std=(1.0,))
        resized = build_transform(unscaled)
        self._to_pixels = lambda image: (255 * resized(image)).round().to(torch.uint8)
        self._limit = limit
        self._read = _decoded.setdefault(f"{folder} {limit} {unscaled}", {})
        self._mean = torch.tensor(config.mean).view(3, 1, 1)
        self._std = torch.tensor(config.std).view(3, 1, 1)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits to measure on."""
        return tuple(name for name in self._splits if name not in ("train", "val"))

    def pixels(self, split: str) -> tuple[Tensor, Tensor]:
        """Return images (n, 3, size, size) uint8 and labels (n,) of a split."""
        if split not in self._read:
            subset = self._splits[split]
            order = torch.randperm(len(subset), generator=torch.Generator().manual_seed(0))
            chosen = LabelledSubset(subset, order[: self._limit].tolist(), subset.targets)
            loader = DataLoader(TransformedImages(chosen, self._to_pixels), BATCH)
            read = list(loader)
            self._read[split] = torch.cat([b[0] for b in read]), torch.cat([b[1] for b in read])
        return self._read[split]

    def normalized(self, images: Tensor) -> Tensor:
        """Return pixels as the network reads them."""
        mean, std = (values.to(images.device) for values in (self._mean, self._std))
        return (images.float() / 255 - mean) / std

    def loader(self, split: str, *, seed: int | None = None, batch: int = BATCH) -> DataLoader:  # type: ignore[type-arg]
        """Return batches on the CPU without augmentation; shuffled if a seed is given."""
        images, labels = self.pixels(split)
        return DataLoader(
            TensorDataset(self.normalized(images), labels),
            batch,
            shuffle=seed is not None,
            generator=None if seed is None else torch.Generator().manual_seed(seed),
        )

    def training(self, *, seed: int, batch: int, augment: bool) -> AugmentedBatches:
        """Return batches of the train split on the device."""
        return AugmentedBatches(self, seed=seed, batch=batch, augment=augment)


class AugmentedBatches:
    """Shuffled batches of images, cropped after padding and flipped at random if `augment`."""

    def __init__(self, data: InMemory, *, seed: int, batch: int, augment: bool) -> None:
        images, labels = data.pixels("train")
        self._data = data
        self._images, self._labels = images.to(data.device), labels.to(data.device)
        self._batch, self._augment = batch, augment
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self._labels) // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._labels), generator=self._generator)
        for chosen in order.split(self._batch):
            indices = chosen.to(self._images.device)
            images = self._images[indices]
            if self._augment:
                images = self._cropped(images)
            yield self._data.normalized(images), self._labels[indices]

    def _cropped(self, images: Tensor) -> Tensor:
        """Return crops of padded images (B, C, H, W), half of them flipped."""
        count, size = len(images), images.shape[-1]
        draws = torch.randint(2 * PADDING + 1, (2, count, 1), generator=self._generator)
        flips = torch.rand(count, 1, generator=self._generator) < 0.5
        along = torch.arange(size)
        rows = draws[0] + along
        columns = draws[1] + torch.where(flips, along.flip(0), along)
        padded = torch.nn.functional.pad(images, (PADDING,) * 4)
        device = images.device
        samples = torch.arange(count, device=device).view(-1, 1, 1)
        cropped = padded.movedim(1, 3)[
            samples, rows.to(device).unsqueeze(2), columns.to(device).unsqueeze(1)
        ]
        return cropped.movedim(3, 1)
