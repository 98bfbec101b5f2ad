"""The feature cache: the frozen backbone runs once, and training reads its cached features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.digest import weights_digest
from leenet_fx.errors import InputError
from leenet_fx.features.batches import check_loader, checked
from leenet_fx.features.compute_modes import default_modes
from leenet_fx.features.feature_batch import FeatureBatch, extract_features
from leenet_fx.features.feature_store import FeatureStore, TemporaryFolder
from leenet_fx.features.sample_order import SampleOrder
from leenet_fx.progress import track
from leenet_fx.surgery.module import EarlyExitModule

LIMIT = 4 * 2**30
"""Bytes above which a cache is held in files instead of memory."""


class FeatureCache:
    """The features that the exits read of every image, in the order of the data set.

    Made by `cache_features`; `fit` accepts it in place of the loader, any number of times. Batches
    have the order and size that the loader would give them. Files, if there are any, are removed
    by `close`, at the end of a `with` block, or when the cache is garbage-collected.

    Attributes:
        epochs_read: number of passes made; with several views it determines the next view.
        memo: a value computed from all samples, and a key of what else it depends on.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        widths: Sequence[int],
        order: SampleOrder,
        views: int,
        fingerprint: str,
        folder: TemporaryFolder | None,
    ) -> None:
        *pooled, self._final, self._final_inputs, self._labels = tensors
        self._pooled = pooled
        self._widths = tuple(widths)
        self._order = order
        self._views = views
        self._fingerprint = fingerprint
        self._folder = folder
        self.epochs_read = 0
        self.memo: tuple[str, object] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels) // self._views

    def __enter__(self) -> FeatureCache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Files belong to the process that made them.
        return {**self.__dict__, "_folder": None, "memo": None}

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Free memory and files; the cache is unusable afterwards."""
        self._pooled, self._final = [], torch.empty(0)
        self._final_inputs = self._labels = torch.empty(0)
        self.memo = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    @property
    def bytes(self) -> int:
        """Size of the cached tensors."""
        cached = (*self._pooled, self._final, self._final_inputs, self._labels)
        return sum(tensor.nbytes for tensor in cached)

    @property
    def on_disk(self) -> bool:
        """Whether the features are held in files."""
        return self._folder is not None

    @property
    def has_final_inputs(self) -> bool:
        """Whether the final classifier can be trained on the cache."""
        return self._final_inputs.numel() > 0

    @property
    def loader(self) -> object:
        """The loader whose generators determine the order of the batches."""
        return self._order.loader

    @property
    def labels(self) -> Tensor:
        """(n,) in the order of the data set."""
        return self._labels[: len(self)]

    @property
    def num_samples(self) -> int:
        """Number of images times views."""
        return len(self._labels)

    def fits(self, ee: EarlyExitModule) -> bool:
        """Return whether the cache was made from this backbone and for these exits."""
        return self._fingerprint == _fingerprint(ee, self.has_final_inputs)

    def check(self, ee: EarlyExitModule) -> None:
        """Check that the cache can be used with a network.

        Raises:
            InputError: the cache was closed, or made from another network.
        """
        if not len(self._labels):
            raise InputError("This feature cache was closed.")
        if not self.fits(ee):
            raise InputError(
                "This feature cache was made from another network: its backbone, exits or branches "
                "differ. Make a new one with cache_features."
            )

    def check_labelled(self, name: str) -> None:
        """Raise InputError if the images were cached without labels.

        Args:
            name: of the argument, for the message.
        """
        if len(self._labels) and int(self._labels.min()) < 0:
            raise InputError(
                f"{name}: the images were cached without labels (labelled=False), and this method "
                "needs labels."
            )

    def epoch(
        self,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
        final: nn.Module | None = None,
    ) -> Iterator[FeatureBatch]:
        """Yield one pass in the loader's order.

        Args:
            device: of the batches.
            rank: of this process, which reads every `processes`-th sample of each batch.
            processes: number of processes that share each batch.
            final: the final classifier, if it may have changed since the cache was made.
        """
        for indices, total in self._epoch(rank, processes):
            yield self._select(indices, device, total, final)

    def epoch_indices(
        self, device: torch.device, rank: int = 0, processes: int = 1
    ) -> Iterator[FeatureBatch]:
        """Yield one pass as `epoch` does, but with positions and labels only."""
        for indices, total in self._epoch(rank, processes):
            labels = self._labels[indices].to(device)
            yield FeatureBatch((), None, None, labels, total, indices=indices.to(device))

    def all_views(
        self, device: torch.device, final: nn.Module | None = None, size: int = 1024
    ) -> Iterator[FeatureBatch]:
        """Yield every view of every image, view by view, in the order of the data set."""
        yield from self._in_order(self.num_samples, device, final, size)

    def first_view(
        self, device: torch.device, final: nn.Module | None = None, size: int = 1024
    ) -> Iterator[FeatureBatch]:
        """Yield the first view of every image, in the order of the data set."""
        yield from self._in_order(len(self), device, final, size)

    def _epoch(self, rank: int, processes: int) -> Iterator[tuple[Tensor, int]]:
        """Yield a process's positions, and the size of the whole batch, for one pass."""
        start = (self.epochs_read % self._views) * len(self)
        self.epochs_read += 1
        for indices in self._order.batches():
            yield indices[rank::processes] + start, len(indices)

    def _in_order(
        self, count: int, device: torch.device, final: nn.Module | None, size: int
    ) -> Iterator[FeatureBatch]:
        for start in range(0, count, size):
            indices = torch.arange(start, min(start + size, count))
            yield self._select(indices, device, len(indices), final)

    def _select(
        self, indices: Tensor, device: torch.device, total: int, final: nn.Module | None
    ) -> FeatureBatch:
        selected = iter([tensor[indices].to(device) for tensor in self._pooled])
        pooled = tuple(tuple(next(selected) for _ in range(width)) for width in self._widths)
        inputs = self._final_inputs[indices].to(device) if self.has_final_inputs else None
        logits = self._final[indices].to(device)
        if final is not None and inputs is not None:
            with torch.no_grad():
                logits = final(inputs)
        return FeatureBatch(pooled, logits, inputs, self._labels[indices].to(device), total)


def cache_features(
    ee: EarlyExitModule,
    loader: Iterable[Any],
    *,
    views: int = 1,
    labelled: bool = True,
    limit: int = LIMIT,
    folder: str | Path | None = None,
    name: str = "images",
) -> FeatureCache:
    """Run the frozen backbone once over a data set and cache the features that the exits read.

    `fit` on the cache gives the weights that `fit` on the loader gives, provided that the loader
    yields the same images each time it is read.

    Args:
        ee: the network; its backbone must not change while the cache is used.
        loader: yields (images (B, …), labels (B,)), as for `fit`. For a DataLoader with a map-style
            data set the order is drawn again each epoch; any other loader is replayed as it was
            read.
        views: number of times to read a data set that augments; epoch e trains on view e mod views.
        labelled: False for a loader of images alone, for methods that train without labels.
        limit: bytes above which the cache is held in files.
        folder: location of these files; None takes the system's folder for temporary files.
        name: of the images, where progress is shown.

    Raises:
        InputError: the images differ from one reading to the next and `views` is 1; batches that do
            not fit the network; features that are not finite, or differ in shape.
        StorageError: the disk is too small for the files.
    """
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise InputError(f"views must be a whole number from 1, got {views!r}.")
    check_loader(loader, "loader")
    with default_modes(ee, grad=False):
        return _cache(ee, SampleOrder(loader), views, labelled, limit, folder, name)


def _cache(
    ee: EarlyExitModule,
    order: SampleOrder,
    views: int,
    labelled: bool,
    limit: int,
    folder: str | Path | None,
    name: str,
) -> FeatureCache:
    if views == 1:
        order.check_deterministic()
    modes = {module: module.training for module in ee.modules()}
    ee.eval()
    num_samples = None if order.num_samples is None else order.num_samples * views
    store = FeatureStore(num_samples, limit, folder)
    has_inputs = True
    inputs_width: int | None = None
    widths: list[int] = []
    device, classes = ee.device, ee.spec.num_classes
    try:
        for view in range(views):
            position = 0
            read = checked(order.in_order(), "loader", classes, device, labelled=labelled)
            for images, labels in track(read, f"backbone on {name}", order.num_samples):
                pooled, final, inputs = extract_features(ee, images)
                has_inputs &= inputs is not None
                widths = [len(tensors) for tensors in pooled]
                flat = [tensor for tensors in pooled for tensor in tensors]
                _check_finite([*flat, final], position)
                if inputs_width is None:
                    inputs_width = 0 if inputs is None else inputs.shape[1]
                if inputs is None or not inputs_width:
                    inputs = final.new_zeros(len(labels), inputs_width)
                store.add([*flat, final, inputs, labels])
                position += len(labels)
                if view == 0:
                    order.add_batch(len(labels))
    except BaseException:
        store.discard()
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
    tensors = store.tensors()
    if not has_inputs:
        tensors[-2] = tensors[-2][:, :0]
    fingerprint = _fingerprint(ee, has_inputs)
    return FeatureCache(tensors, widths, order, views, fingerprint, store.folder)


def _check_finite(tensors: Sequence[Tensor], position: int) -> None:
    """Raise InputError if a feature of a batch is not finite.

    Args:
        tensors: (B, …).
        position: of the batch's first image.
    """
    for values in tensors:
        if not bool(values.isfinite().all()):
            index = int((~values.flatten(1).isfinite().all(1)).nonzero()[0])
            raise InputError(
                f"The features of image {position + index} of the loader, counted from 0 in the "
                "order of its data set, are not finite: look for NaN in the images."
            )


def _fingerprint(ee: EarlyExitModule, without_final: bool) -> str:
    """Return a digest of everything that cached features depend on.

    Args:
        ee: the network.
        without_final: whether the final classifier may change, since its inputs are cached.
    """
    spec = ee.spec
    excluded = ("exits.", f"{spec.final_classifier}.") if without_final else ("exits.",)
    digest = hashlib.sha256(repr((spec.placement.names, spec.cuts, spec.image_shape)).encode())
    for branch in ee.exits.branches():
        digest.update(repr((branch.pooling, branch.features)).encode())
    backbone = (
        (name, tensor)
        for name, tensor in ee.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not name.startswith(excluded)
    )
    digest.update(weights_digest(backbone).encode())
    return digest.hexdigest()
