"""The order in which a loader yields its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from leenet_fx.errors import InputError

COMPARED = 16
"""Number of images that are read twice to detect augmentation."""


class SampleOrder:
    """The order of a loader's samples, epoch by epoch.

    For a DataLoader with a map-style data set, each epoch's order is drawn by its sampler. Any
    other loader is replayed in the order in which it was read.

    Attributes:
        loader: the loader, whose generators determine the order.
        num_samples: upper bound of the number of samples, if it is known.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.num_samples: int | None = None
        self._dataset: Any = None
        self._batch_sizes: list[int] = []
        if (
            isinstance(loader, DataLoader)
            and loader.batch_sampler is not None
            and not isinstance(loader.dataset, IterableDataset)
        ):
            self._dataset = loader.dataset
            self.num_samples = len(self._dataset)
        elif isinstance(loader, Sized):
            first = next(iter(loader), None)
            images = first[0] if isinstance(first, (tuple, list)) and first else None
            if isinstance(images, Tensor):
                self.num_samples = len(loader) * len(images)

    def __getstate__(self) -> dict[str, Any]:
        # Processes that train on a feature cache need the order of the batches, not the images.
        state = dict(self.__dict__)
        if self._dataset is not None:
            state["loader"] = self._index_loader()
            state["_dataset"] = _Indices(len(self._dataset))
        return state

    def in_order(self) -> Iterable[Any]:
        """Return the loader in the order of its data set; its generator draws nothing."""
        if self._dataset is None:
            return self.loader
        assert isinstance(self.loader, DataLoader)
        return DataLoader(
            self._dataset,
            batch_size=self.loader.batch_size or 64,
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            generator=torch.Generator().manual_seed(0),
        )

    def add_batch(self, size: int) -> None:
        """Record the size of a batch that was read."""
        self._batch_sizes.append(size)

    def batches(self) -> Iterator[Tensor]:
        """Yield the samples' positions (B,) in the data set for each batch of one epoch."""
        if self._dataset is None:
            start = 0
            for size in self._batch_sizes:
                yield torch.arange(start, start + size)
                start += size
        else:
            yield from self._index_loader()

    def check_deterministic(self) -> None:
        """Raise InputError if reading an image twice gives two images."""
        if self._dataset is not None:
            some = range(0, len(self._dataset), max(1, len(self._dataset) // COMPARED))
            same = all(_equal(self._dataset[i], self._dataset[i]) for i in some)
        else:
            same = _equal(next(iter(self.loader), None), next(iter(self.loader), None))
        if not same:
            raise InputError(
                "The images differ from one reading to the next (augmentation, or a shuffled "
                "iterable), and a feature cache holds a single reading. Pass views=k to "
                "cache_features to hold k readings, or train without a cache."
            )

    def _index_loader(self) -> DataLoader[int]:
        """Return a loader of positions in the order of the loader's sampler."""
        assert isinstance(self.loader, DataLoader)
        return DataLoader(
            _Indices(len(self._dataset)),
            batch_sampler=self.loader.batch_sampler,
            generator=self.loader.generator,
            collate_fn=torch.tensor,
        )


class _Indices(Dataset[int]):
    """A data set of the integers 0..count−1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def _equal(first: Any, second: Any) -> bool:
    """Compare nested tuples and lists of tensors, arrays and plain values."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if hasattr(first, "__array__") and hasattr(second, "__array__"):
        return _equal(torch.as_tensor(first), torch.as_tensor(second))
    return bool(first == second)
