"""The registry of export formats, and what a format is."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leenet_fx.errors import DependencyError
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.registry import Registry
from leenet_fx.run import Prediction

Runner: TypeAlias = Callable[
    [NDArray[np.float32], Sequence[float] | None, float | None], Prediction
]
"""`(images, thresholds, alpha)` → logits, exits and confidences. Images are (B, …); there are N
thresholds, on the policy's scale. None stands for the active thresholds, and the active α."""


class ExportFormat(ABC):
    """A format of files.

    A subclass is registered by its name, and writes a file, or a folder of files. The export
    verifies what was written, adds checksums, and moves it to its place.

    Attributes:
        extra: the extra of leenet-fx that installs its libraries.
        modules: names of the modules that it imports.
        is_folder: whether it writes a folder.
        batch_sizes: batch sizes that the file accepts, if not all.
    """

    extra: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    is_folder: ClassVar[bool] = False
    batch_sizes: ClassVar[tuple[int, ...] | None] = None

    @abstractmethod
    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        """Write the network.

        Args:
            plan: the network.
            description: of the network, see `leenet_fx.export.description`.
            path: of the new file or folder.

        Raises:
            ExportError: the format cannot express the network; the message names the reason.
        """

    @abstractmethod
    def open(self, plan: ExportPlan, path: Path) -> Runner:
        """Open what `write` wrote, in the runtime that the format is for.

        Args:
            plan: the network.
            path: of the file or folder; checksums are there.
        """

    def check_installed(self, name: str) -> None:
        """Raise DependencyError if a library of the format of this name is missing."""
        missing = [m for m in self.modules if importlib.util.find_spec(m) is None]
        if missing:
            raise DependencyError(
                f"The format '{name}' needs {' and '.join(missing)}: pip install "
                f"'leenet-fx[{self.extra}]'."
            )


_formats: Registry[type[ExportFormat]] = Registry("export format", "leenet_fx.export_formats")
register_format = _formats.register
list_formats = _formats.names
get_format = _formats.get
