"""The feature cache: a frozen backbone runs once, and training reads what was kept."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from leenet_fx.errors import InputError, StorageError
from leenet_fx.features.batches import batches, check_loader
from leenet_fx.surgery.module import EarlyExitModule, device_of, final_classifier

LIMIT = 4 * 2**30
"""Bytes above which a cache is kept in files instead of memory."""

COMPARED = 16
"""Images read twice to find out whether a data set augments."""


@dataclass(frozen=True)
class FeatureBatch:
    """A batch as training on a frozen backbone sees it.

    Attributes:
        reduced: for each exit what its branch's `reduce` leaves, tensors (B, …).
        final: logits of the final classifier (B, classes); None where nobody asked.
        final_inputs: what the final classifier reads; None where it is not known.
        labels: (B,); −1 where there are none.
        total: size of the whole batch, of which other processes may hold rows.
        images: (B, …), where the backbone trains too; nothing is kept of them then.
        numbers: (B,) which rows of a cache these are, where only that was asked.
    """

    pooled: tuple[tuple[Tensor, ...], ...]
    final: Tensor | None
    final_inputs: Tensor | None
    labels: Tensor
    total: int
    images: Tensor | None = None
    numbers: Tensor | None = None


class FeatureCache:
    """What the exits read of every image, in the order the data set has them.

    Made by `cache_features`; `fit` takes it in the place of the loader, as often as one likes.
    Batches come in the order and size in which the loader would give them. Files, where there are
    any, go with `close`, at the end of a `with` block, or when the cache is no longer used.

    Attributes:
        epochs_read: how many passes were made; with several views it tells which is next.
        remembered: something computed of all that is kept, with what it depends on besides.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        widths: Sequence[int],
        order: SampleOrder,
        views: int,
        signature: str,
        folder: _Folder | None,
    ) -> None:
        *pooled, self._final, self._final_inputs, self._labels = tensors
        self._reduced = pooled
        self._widths = tuple(widths)
        self._order = order
        self._views = views
        self._signature = signature
        self._folder = folder
        self.epochs_read = 0
        self.memo: tuple[str, object] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels) // self._views

    def __enter__(self) -> FeatureCache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Files belong to the process that made them.
        return {**self.__dict__, "_folder": None, "remembered": None}

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives memory and files back; the cache is of no use afterwards."""
        self._reduced, self._final = [], torch.empty(0)
        self._final_inputs = self._labels = torch.empty(0)
        self.memo = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        kept = (*self._reduced, self._final, self._final_inputs, self._labels)
        return sum(tensor.nbytes for tensor in kept)

    @property
    def on_disk(self) -> bool:
        """Whether it is kept in files."""
        return self._folder is not None

    @property
    def keeps_final_inputs(self) -> bool:
        """Whether the final classifier can be trained on it."""
        return self._final_inputs.numel() > 0

    def check_labelled(self, name: str) -> None:
        """Raises InputError where the images came without labels."""
        if len(self._labels) and int(self._labels.min()) < 0:
            raise InputError(
                f"{name}: the images were kept without labels (labelled=False), and this method "
                "needs labels."
            )

    @property
    def loader(self) -> object:
        """The loader it was made from, whose generators decide the order of the batches."""
        return self._order.loader

    def fits(self, ee: EarlyExitModule) -> bool:
        """Whether it holds what the exits of this network read, of this backbone."""
        return self._signature == _signature(ee, self.keeps_final_inputs)

    def check(self, ee: EarlyExitModule) -> None:
        """Raises InputError where the cache was closed, or made of another network."""
        if not len(self._labels):
            raise InputError("This feature cache was closed.")
        if not self.fits(ee):
            raise InputError(
                "This feature cache was made of another network: its backbone, exits or branches "
                "differ. Make a new one with cache_features."
            )

    def epoch(
        self,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
        final: nn.Module | None = None,
    ) -> Iterator[FeatureBatch]:
        """One pass in the loader's order.

        Args:
            device: where the rows are needed.
            rank: of this process, which gets every `processes`-th row of each batch.
            processes: how many share the work.
            final: the final classifier, where it may have changed since.
        """
        start = (self.epochs_read % self._views) * len(self)
        self.epochs_read += 1
        for indices in self._order.batches():
            yield self._take(indices[rank::processes] + start, device, len(indices), final)

    @property
    def labels(self) -> Tensor:
        """(n,) in the order of the data set."""
        return self._labels[: len(self)]

    @property
    def rows(self) -> int:
        """Number of images times views."""
        return len(self._labels)

    def numbers(
        self, device: torch.device, rank: int = 0, processes: int = 1
    ) -> Iterator[FeatureBatch]:
        """One pass in the loader's order, as `epoch`, but only which rows, and their labels."""
        start = (self.epochs_read % self._views) * len(self)
        self.epochs_read += 1
        for indices in self._order.batches():
            mine = indices[rank::processes] + start
            labels = self._labels[mine].to(device)
            yield FeatureBatch((), None, None, labels, len(indices), numbers=mine.to(device))

    def everything(
        self, device: torch.device, final: nn.Module | None = None, size: int = 1024
    ) -> Iterator[FeatureBatch]:
        """Every view of every image, view by view, in the order of the data set."""
        for start in range(0, self.rows, size):
            indices = torch.arange(start, min(start + size, self.rows))
            yield self._take(indices, device, len(indices), final)

    def in_order(
        self, device: torch.device, size: int = 1024, final: nn.Module | None = None
    ) -> Iterator[FeatureBatch]:
        """The first view of every image, in the order of the data set."""
        for start in range(0, len(self), size):
            indices = torch.arange(start, min(start + size, len(self)))
            yield self._take(indices, device, len(indices), final)

    def _take(
        self, rows: Tensor, device: torch.device, total: int, final: nn.Module | None
    ) -> FeatureBatch:
        taken = iter([tensor[rows].to(device) for tensor in self._reduced])
        pooled = tuple(tuple(next(taken) for _ in range(width)) for width in self._widths)
        inputs = self._final_inputs[rows].to(device) if self.keeps_final_inputs else None
        logits = self._final[rows].to(device)
        if final is not None and inputs is not None:
            with torch.no_grad():
                logits = final(inputs)
        return FeatureBatch(pooled, logits, inputs, self._labels[rows].to(device), total)


@torch.no_grad()
def cache_features(
    ee: EarlyExitModule,
    loader: Iterable[Any],
    *,
    views: int = 1,
    labelled: bool = True,
    limit: int = LIMIT,
    folder: str | Path | None = None,
) -> FeatureCache:
    """Runs the frozen backbone once over a data set and keeps what the exits read.

    `fit` on the result does what `fit` on the loader does, where the loader gives the same images
    each time it is read.

    Args:
        ee: the network; its backbone must stay as it is while the cache is used.
        loader: yields (images (B, …), labels (B,)). Of a DataLoader with a map-style data set the
            order is drawn anew each epoch, as it would be; anything else is replayed as read.
        views: how many times to read a data set that augments; epoch e trains on view e mod views.
        labelled: False for a loader of images alone, for methods that do without labels.
        limit: bytes above which the cache is kept in files.
        folder: where those files go; None takes the system's folder for temporary files.

    Raises:
        InputError: the images differ from one reading to the next and `views` is 1; a loader of
            unknown length outgrows `limit`; batches that do not fit.
        StorageError: the disk has no room for the files.
    """
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise InputError(f"views must be a whole number from 1, got {views!r}.")
    check_loader(loader, "loader")
    order = SampleOrder(loader)
    if views == 1:
        order.check_steady()
    training = {module: module.training for module in ee.modules()}
    ee.eval()
    kept = FeatureStore(order.rows, views, limit, folder)
    keeps_inputs = True
    try:
        for _ in range(views):
            device = device_of(ee)
            for images, labels in batches(
                order.read(), "loader", ee.spec.num_classes, device, labelled=labelled
            ):
                pooled, final, inputs = read(ee, images)
                keeps_inputs &= inputs is not None
                flat = [tensor for tensors in pooled for tensor in tensors]
                widths = [len(tensors) for tensors in pooled]
                empty = final.new_empty(len(labels), 0)
                kept.add([*flat, final, empty if inputs is None else inputs, labels])
                order.saw(len(labels))
    except BaseException:
        kept.discard()
        raise
    finally:
        for module, mode in training.items():
            module.training = mode
    return FeatureCache(
        kept.tensors(), widths, order, views, _signature(ee, keeps_inputs), kept.folder
    )


def read(
    ee: EarlyExitModule, images: Tensor
) -> tuple[tuple[tuple[Tensor, ...], ...], Tensor, Tensor | None]:
    """What every branch needs of a batch, the final logits, and what the final classifier read.

    The last is None where the logits are not exactly what one linear layer answers.
    """
    seen: list[Tensor] = []
    final = final_classifier(ee)
    hook = None
    if isinstance(final, nn.Linear):
        hook = final.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        stages = ee.exit_features(images)
        pooled = pool_features(ee, stages)
        logits = next(stages)[0]
    finally:
        if hook is not None:
            hook.remove()
    exact = (
        final is not None
        and len(seen) == 1
        and seen[0].ndim == 2
        and torch.equal(final(seen[0]), logits)
    )
    return pooled, logits, seen[0] if exact else None


def pool_features(
    ee: EarlyExitModule, stages: Iterator[tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], ...]:
    """What every branch needs of a batch; leaves `stages` in front of the final logits.

    Args:
        ee: the network.
        stages: as `ee.exit_features` yields them.
    """
    return tuple(tuple(branch.pool(*next(stages))) for branch in ee.exits.branches())


class SampleOrder:
    """In which order a loader's images come, epoch by epoch."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.dataset: Any = None
        self._sizes: list[int] = []
        self.rows: int | None = None
        if (
            isinstance(loader, DataLoader)
            and loader.batch_sampler is not None
            and not isinstance(loader.dataset, IterableDataset)
        ):
            self.dataset = loader.dataset
            self.rows = len(self.dataset)
        elif isinstance(loader, Sized):
            first = next(iter(loader), None)
            images = first[0] if isinstance(first, (tuple, list)) and first else None
            if isinstance(images, Tensor):
                self.rows = len(loader) * len(images)

    def __getstate__(self) -> dict[str, Any]:
        # Processes that train on the cache need the order of the batches, not the images.
        state = dict(self.__dict__)
        if self.dataset is not None:
            state["loader"] = DataLoader(
                _Numbers(len(self.dataset)),
                batch_sampler=self.loader.batch_sampler,  # type: ignore[attr-defined]
                generator=self.loader.generator,  # type: ignore[attr-defined]
            )
            state["dataset"] = _Numbers(len(self.dataset))
        return state

    def read(self) -> Iterable[Any]:
        """The loader in the order of its data set; draws nothing from its generator."""
        if self.dataset is None:
            return self.loader
        assert isinstance(self.loader, DataLoader)
        return DataLoader(
            self.dataset,
            batch_size=self.loader.batch_size or 64,
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            generator=torch.Generator().manual_seed(0),
        )

    def saw(self, count: int) -> None:
        """Notes the size of a batch."""
        self._sizes.append(count)

    def batches(self) -> Iterator[Tensor]:
        """Indices of one epoch's batches."""
        if self.dataset is None:
            start = 0
            for size in self._sizes:
                yield torch.arange(start, start + size)
                start += size
            return
        assert isinstance(self.loader, DataLoader)
        yield from DataLoader(
            _Numbers(len(self.dataset)),
            batch_sampler=self.loader.batch_sampler,
            generator=self.loader.generator,
            collate_fn=torch.tensor,
        )

    def check_steady(self) -> None:
        """Raises InputError where reading twice gives two answers."""
        if self.dataset is not None:
            some = range(0, len(self.dataset), max(1, len(self.dataset) // COMPARED))
            steady = all(_same(self.dataset[i], self.dataset[i]) for i in some)
        else:
            steady = _same(next(iter(self.loader), None), next(iter(self.loader), None))
        if not steady:
            raise InputError(
                "The images differ from one reading to the next (augmentation, or a shuffled "
                "iterable): a feature cache would keep one of them only. Pass views=k to "
                "cache_features to keep k, or train without a cache."
            )


class _Numbers(Dataset[int]):
    """A data set of indices, read a batch at a time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


class FeatureStore:
    """Tensors that grow batch by batch, in memory or in files."""

    def __init__(self, rows: int | None, views: int, limit: int, folder: str | Path | None) -> None:
        self.rows = None if rows is None else rows * views
        self.limit = limit
        self.where = folder
        self.folder: _Folder | None = None
        self.buffers: list[Tensor] = []
        self.chunks: list[list[Tensor]] = []
        self.filled = 0
        self.size = 0

    def add(self, batch: list[Tensor]) -> None:
        count = len(batch[-1])
        self.size += sum(tensor.nbytes for tensor in batch)
        if self.rows is None:
            if self.size > self.limit:
                raise InputError(
                    f"The features of a loader of unknown length outgrow limit={self.limit:,} "
                    "bytes; raise the limit, or use a DataLoader with a map-style data set."
                )
            self.chunks.append([tensor.cpu() for tensor in batch])
        else:
            if not self.buffers:
                self._allocate(batch)
            for buffer, tensor in zip(self.buffers, batch, strict=True):
                buffer[self.filled : self.filled + count] = tensor
        self.filled += count

    def tensors(self) -> list[Tensor]:
        """One tensor for each of a batch."""
        if self.rows is None:
            return [torch.cat(parts) for parts in zip(*self.chunks, strict=True)]
        return [buffer[: self.filled] for buffer in self.buffers]

    def discard(self) -> None:
        """Removes the files."""
        if self.folder is not None:
            self.folder.remove()

    def _allocate(self, batch: list[Tensor]) -> None:
        assert self.rows is not None
        shapes = [(self.rows, *tensor.shape[1:]) for tensor in batch]
        needed = sum(
            math.prod(shape) * tensor.element_size()
            for shape, tensor in zip(shapes, batch, strict=True)
        )
        if needed <= self.limit:
            self.buffers = [
                torch.empty(shape, dtype=tensor.dtype)
                for shape, tensor in zip(shapes, batch, strict=True)
            ]
            return
        where = Path(tempfile.gettempdir() if self.where is None else self.where)
        try:
            free = shutil.disk_usage(where).free
            if needed > free:
                raise StorageError(
                    f"The features need {needed:,} bytes, but '{where}' has {free:,} left: pass "
                    "another folder=, fewer exits, or train without a cache."
                )
            self.folder = _Folder(where)
        except FileNotFoundError as error:
            raise StorageError(f"No folder '{where}' for the features.") from error
        for index, (shape, tensor) in enumerate(zip(shapes, batch, strict=True)):
            count = math.prod(shape)
            if count == 0:
                self.buffers.append(torch.empty(shape, dtype=tensor.dtype))
                continue
            file = self.folder.path / f"{index}.bin"
            flat = torch.from_file(str(file), shared=True, size=count, dtype=tensor.dtype)
            self.buffers.append(flat.view(shape))


class _Folder:
    """A folder of one's own that goes when nobody uses it any more, or at the latest at the end."""

    def __init__(self, where: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="leenet-fx-", dir=where))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    if hasattr(first, "__array__") and hasattr(second, "__array__"):
        return _same(torch.as_tensor(first), torch.as_tensor(second))
    return bool(first == second)


def _signature(ee: EarlyExitModule, without_final: bool) -> str:
    """A digest of what the kept features depend on."""
    spec = ee.spec
    final = f"{spec.final_classifier}." if without_final else "exits."
    digest = hashlib.sha256(repr((spec.placement.names, spec.cuts, spec.image_shape)).encode())
    for branch in ee.exits.branches():
        digest.update(repr((branch.pooling, branch.features)).encode())
    for name, tensor in ee.state_dict().items():
        if not name.startswith(("exits.", final)):
            values = tensor.detach().double()
            digest.update(f"{name} {float(values.sum())} {float(values.abs().sum())}".encode())
    return digest.hexdigest()
