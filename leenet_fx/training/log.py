"""Metrics on disk: metrics.csv, and TensorBoard's events where asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from leenet_fx.errors import DependencyError
from leenet_fx.storage.files import write_atomically

FILE = "metrics.csv"


@dataclass(frozen=True)
class Epoch:
    """One epoch of one step: mean losses over samples; `val_loss` is None without `val`."""

    step: str
    epoch: int
    train_loss: float
    val_loss: float | None
    seconds: float


def write_metrics(folder: Path, history: Sequence[Epoch]) -> None:
    """Writes the whole history as CSV, a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    write_atomically(folder / FILE, text.getvalue())


class TensorBoard:
    """Losses as TensorBoard scalars, one curve a step.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DependencyError(
                "tensorboard=True needs TensorBoard: pip install 'leenet-fx[tensorboard]'."
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, epoch: Epoch) -> None:
        """Adds one epoch."""
        self._writer.add_scalar(f"{epoch.step}/train_loss", epoch.train_loss, epoch.epoch)
        if epoch.val_loss is not None:
            self._writer.add_scalar(f"{epoch.step}/val_loss", epoch.val_loss, epoch.epoch)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
