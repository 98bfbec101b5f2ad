"""The order in which a loader yields its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from leenet_fx.errors import InputError
from leenet_fx.features.batches import check_new_pass

COMPARED = 16
"""Number of images that are read twice to detect augmentation."""

DEFAULT_BATCH = 64
"""Images of a batch where the loader has a batch sampler of its own."""


class SampleOrder:
    """The order of a loader's samples, epoch by epoch.

    For a DataLoader with a map-style data set, each epoch's order is drawn by its sampler. Any
    other loader is replayed in the order in which it was read.

    Attributes:
        loader: the loader, whose generators determine the order.
        num_samples: expected number of samples, if it is known.
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

    def __getstate__(self) -> dict[str, Any]:
        # Processes that train on a feature cache need the order of the batches, not the images.
        state = dict(self.__dict__)
        if self._dataset is not None:
            state["loader"] = self._index_loader()
            state["_dataset"] = _Indices(len(self._dataset))
        return state

    def in_order(self) -> Iterator[Any]:
        """Yield batches in the order of the data set; the loader's generator draws nothing.

        Raises:
            InputError: the images of a batch differ in size.
        """
        if self._dataset is None:
            yield from self.loader
            return
        assert isinstance(self.loader, DataLoader)
        yield from self._read(self._dataset, self._batch_size, self.loader.num_workers)

    @property
    def _batch_size(self) -> int:
        return getattr(self.loader, "batch_size", None) or DEFAULT_BATCH

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
        """Raise InputError if reading some images twice gives two results, or is impossible.

        Batches are compared, so that a `collate_fn` that augments is found too.
        """
        if self._dataset is not None:
            count = len(self._dataset)
            some = Subset(self._dataset, range(0, count, max(1, count // COMPARED)))
            size = min(self._batch_size, max(len(some), 1))
            same = all(map(_equal, self._read(some, size), self._read(some, size)))
        else:
            first = iter(self.loader)
            batch = next(first, None)
            second = iter(self.loader)
            check_new_pass(self.loader, first, second, "loader")
            same = _equal(batch, next(second, None))
        if not same:
            raise InputError(
                "The images differ from one reading to the next (augmentation, or a shuffled "
                "iterable), and a feature cache holds a single reading. Pass views=k to "
                "cache_features to hold k readings, or train without a cache."
            )

    def _read(self, dataset: Dataset[Any], batch_size: int, workers: int = 0) -> Iterator[Any]:
        """Yield batches of a data set in its order, collated as the loader collates them."""
        assert isinstance(self.loader, DataLoader)
        parallel: dict[str, Any] = {}
        if workers:
            parallel = {
                "worker_init_fn": self.loader.worker_init_fn,
                "multiprocessing_context": self.loader.multiprocessing_context,
                "prefetch_factor": self.loader.prefetch_factor,
                "timeout": self.loader.timeout,
            }
        loader = DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=self.loader.collate_fn,
            generator=torch.Generator().manual_seed(0),
            **parallel,
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            raise InputError(
                f"A feature cache reads images in the order of the data set, {batch_size} at a "
                "time, and these differ in size: give all images the same size, pass a DataLoader "
                "with batch_size=1, or train without a cache."
            ) from error

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
    """Compare nested dictionaries, tuples and lists of tensors, arrays and plain values."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape:
            return False
        # Images that are not a number are reported as such, not as augmentation.
        return torch.equal(first, second) or bool(
            ((first == second) | (first.isnan() & second.isnan())).all()
        )
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if hasattr(first, "__array__") and hasattr(second, "__array__"):
        return _equal(torch.as_tensor(first), torch.as_tensor(second))
    return bool(first == second)
