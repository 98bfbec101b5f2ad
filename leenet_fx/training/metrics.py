"""Losses of each epoch: metrics.csv, and TensorBoard events on request."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from leenet_fx.errors import DependencyError
from leenet_fx.storage.files import write_atomically

FILE = "metrics.csv"


@dataclass(frozen=True)
class Epoch:
    """One epoch of one phase.

    Attributes:
        phase: name of the phase.
        epoch: number within the phase, from 1.
        train_loss: mean over training samples.
        val_loss: mean over validation samples; None without validation data.
        seconds: duration of training and validation.
    """

    phase: str
    epoch: int
    train_loss: float
    val_loss: float | None
    seconds: float


def write_metrics(folder: Path, history: Sequence[Epoch]) -> None:
    """Write all epochs to metrics.csv, one row for each.

    Raises:
        StorageError: the file cannot be written; the file before it is intact.
    """
    # Fabric's CSVLogger appends to its file, and on resuming warns and deletes it, so a run that
    # is killed could lose rows. Here the file always holds all epochs of the last checkpoint.
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    write_atomically(folder / FILE, text.getvalue())


def tensorboard_logger(folder: Path) -> TensorBoardLogger:
    """Return a logger that writes events to `folder` itself.

    Raises:
        DependencyError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(folder, name="", version="")
    except ModuleNotFoundError as error:
        raise DependencyError(
            "tensorboard=True needs TensorBoard: pip install 'leenet-fx[tensorboard]'."
        ) from error


def scalars(epoch: Epoch) -> dict[str, float]:
    """Return the losses of an epoch by the names of their TensorBoard curves."""
    losses = {f"{epoch.phase}/train_loss": epoch.train_loss}
    if epoch.val_loss is not None:
        losses[f"{epoch.phase}/val_loss"] = epoch.val_loss
    return losses


class NotFiniteError(Exception):
    """A loss is NaN or infinite.

    Attributes:
        value: of the loss.
        location: the split and the batch.
    """

    def __init__(self, value: float, location: str) -> None:
        super().__init__(f"{value} in {location}")
        self.value = value
        self.location = location


class FiniteMean:
    """A mean over samples, accumulated batch by batch.

    Args:
        split: of the samples, for `NotFiniteError`.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.total = 0.0
        self.count = 0
        self.batches = 0

    def add(self, value: float, count: int) -> None:
        """Add the mean of a batch.

        Args:
            value: mean over the batch.
            count: number of samples.

        Raises:
            NotFiniteError: the value is NaN or infinite.
        """
        self.batches += 1
        if not math.isfinite(value):
            raise NotFiniteError(value, f"{self.split} batch {self.batches}")
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float:
        """The mean over all samples."""
        return self.total / self.count
