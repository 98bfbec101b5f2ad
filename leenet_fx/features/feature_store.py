"""Tensors that grow batch by batch, in memory or in files."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leenet_fx.errors import InputError, StorageError


class FeatureStore:
    """Tensors with one entry for each sample, filled batch by batch.

    Args:
        num_samples: expected number of samples; the tensors grow where there are more.
        limit: bytes above which the tensors are held in files.
        location: folder for a temporary folder of files; None takes the system's.

    Attributes:
        folder: the temporary folder, if the tensors are held in files.
    """

    def __init__(self, num_samples: int | None, limit: int, location: str | Path | None) -> None:
        self.limit = limit
        self.location = Path(tempfile.gettempdir() if location is None else location)
        self.folder: TemporaryFolder | None = None
        self._capacity = num_samples or 0
        self._buffers: list[Tensor] = []
        self._filled = 0

    def add(self, batch: Sequence[Tensor]) -> None:
        """Append a batch, tensors (B, …) whose other sizes are those of the batches before.

        Raises:
            InputError: the sizes differ from those of the batches before.
            StorageError: the folder for files does not exist, or the disk is too small.
        """
        self._check_sizes(batch)
        end = self._filled + len(batch[0])
        if not self._buffers or end > self._capacity:
            self._capacity = max(end, 2 * self._filled, self._capacity)
            self._allocate(batch)
        for buffer, tensor in zip(self._buffers, batch, strict=True):
            buffer[self._filled : end] = tensor
        self._filled = end

    def tensors(self) -> list[Tensor]:
        """Return the batches concatenated, (n, …) for each tensor of a batch."""
        return [buffer[: self._filled] for buffer in self._buffers]

    def discard(self) -> None:
        """Remove the files."""
        if self.folder is not None:
            self.folder.remove()

    def _check_sizes(self, batch: Sequence[Tensor]) -> None:
        for buffer, tensor in zip(self._buffers, batch, strict=False):
            if buffer.shape[1:] != tensor.shape[1:]:
                raise InputError(
                    f"The features of one image are of shape {tuple(tensor.shape[1:])}, those of "
                    f"the images before of shape {tuple(buffer.shape[1:])}: give all images the "
                    "same size, or use branches that pool to a fixed size."
                )

    def _allocate(self, batch: Sequence[Tensor]) -> None:
        """Make room for `_capacity` samples like those of a batch, and keep what is there."""
        shapes = [(self._capacity, *tensor.shape[1:]) for tensor in batch]
        layout = list(zip(shapes, [tensor.dtype for tensor in batch], strict=True))
        before, kept = self._buffers, slice(self._filled)
        needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)
        if needed <= self.limit:
            self._buffers = [torch.empty(shape, dtype=dtype) for shape, dtype in layout]
            for buffer, old in zip(self._buffers, before, strict=False):
                buffer[kept] = old[kept]
            return
        folder = self._folder(needed)
        old_files = list(folder.path.iterdir())
        self._buffers = []
        for index, (shape, dtype) in enumerate(layout):
            count = math.prod(shape)
            if count == 0:
                self._buffers.append(torch.empty(shape, dtype=dtype))
                continue
            file = folder.path / f"{index}-{self._capacity}.bin"
            flat = torch.from_file(str(file), shared=True, size=count, dtype=dtype)
            self._buffers.append(flat.view(shape))
        for buffer, old in zip(self._buffers, before, strict=False):
            buffer[kept] = old[kept]
        for file in old_files:
            file.unlink()

    def _folder(self, needed: int) -> TemporaryFolder:
        """Return the temporary folder, if the disk has room for another `needed` bytes."""
        try:
            free = shutil.disk_usage(self.location).free
            if needed > free:
                raise StorageError(
                    f"The features need {needed:,} bytes, but '{self.location}' has {free:,} "
                    "left: pass another folder=, use fewer exits, or train without a cache."
                )
            if self.folder is None:
                self.folder = TemporaryFolder(self.location)
        except FileNotFoundError as error:
            raise StorageError(f"No folder '{self.location}' for the features.") from error
        return self.folder


class TemporaryFolder:
    """A folder that is removed once it is garbage-collected, or at exit at the latest.

    Attributes:
        path: of the folder.
        remove: removes the folder and its files.
    """

    def __init__(self, location: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="leenet-fx-", dir=location))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
