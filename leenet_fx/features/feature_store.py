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
        num_samples: upper bound of the number of samples; None if it is unknown, in which case
            the tensors are held in memory.
        limit: bytes above which the tensors are held in files.
        location: folder for a temporary folder of files; None takes the system's.

    Attributes:
        folder: the temporary folder, if the tensors are held in files.
    """

    def __init__(self, num_samples: int | None, limit: int, location: str | Path | None) -> None:
        self.num_samples = num_samples
        self.limit = limit
        self.location = Path(tempfile.gettempdir() if location is None else location)
        self.folder: TemporaryFolder | None = None
        self._buffers: list[Tensor] = []
        self._chunks: list[list[Tensor]] = []
        self._filled = 0
        self._bytes = 0

    def add(self, batch: Sequence[Tensor]) -> None:
        """Append a batch, tensors (B, …) whose other sizes are those of the batches before.

        Raises:
            InputError: the number of samples is unknown, and the features exceed the limit.
            StorageError: the folder for files does not exist, or the disk is too small.
        """
        self._bytes += sum(tensor.nbytes for tensor in batch)
        if self.num_samples is None:
            if self._bytes > self.limit:
                raise InputError(
                    f"The features of a loader of unknown length exceed limit={self.limit:,} "
                    "bytes; raise the limit, or use a DataLoader with a map-style data set."
                )
            self._chunks.append([tensor.cpu() for tensor in batch])
            return
        if not self._buffers:
            self._allocate(batch, self.num_samples)
        end = self._filled + len(batch[0])
        for buffer, tensor in zip(self._buffers, batch, strict=True):
            buffer[self._filled : end] = tensor
        self._filled = end

    def tensors(self) -> list[Tensor]:
        """Return the batches concatenated, (n, …) for each tensor of a batch."""
        if self.num_samples is None:
            return [torch.cat(parts) for parts in zip(*self._chunks, strict=True)]
        return [buffer[: self._filled] for buffer in self._buffers]

    def discard(self) -> None:
        """Remove the files."""
        if self.folder is not None:
            self.folder.remove()

    def _allocate(self, batch: Sequence[Tensor], num_samples: int) -> None:
        shapes = [(num_samples, *tensor.shape[1:]) for tensor in batch]
        layout = list(zip(shapes, [tensor.dtype for tensor in batch], strict=True))
        needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout)
        if needed <= self.limit:
            self._buffers = [torch.empty(shape, dtype=dtype) for shape, dtype in layout]
            return
        try:
            free = shutil.disk_usage(self.location).free
            if needed > free:
                raise StorageError(
                    f"The features need {needed:,} bytes, but '{self.location}' has {free:,} "
                    "left: pass another folder=, use fewer exits, or train without a cache."
                )
            self.folder = TemporaryFolder(self.location)
        except FileNotFoundError as error:
            raise StorageError(f"No folder '{self.location}' for the features.") from error
        for index, (shape, dtype) in enumerate(layout):
            count = math.prod(shape)
            if count == 0:
                self._buffers.append(torch.empty(shape, dtype=dtype))
                continue
            file = self.folder.path / f"{index}.bin"
            flat = torch.from_file(str(file), shared=True, size=count, dtype=dtype)
            self._buffers.append(flat.view(shape))


class TemporaryFolder:
    """A folder that is removed once it is garbage-collected, or at exit at the latest.

    Attributes:
        path: of the folder.
        remove: removes the folder and its files.
    """

    def __init__(self, location: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="leenet-fx-", dir=location))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
