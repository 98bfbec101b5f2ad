"""export: a network with exits as a file for another runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.errors import InputError, StorageError
from leenet_fx.export import onnx_format, onnx_stages_format
from leenet_fx.export.description import describe
from leenet_fx.export.formats import get_format
from leenet_fx.export.placing import add_checksums, check_place, place, working_folder
from leenet_fx.export.stage_modules import ExportPlan, export_plan
from leenet_fx.export.verify import Verification, verify
from leenet_fx.keywords import check_keywords
from leenet_fx.surgery.module import EarlyExitModule

__all__ = ["ExportResult", "export", "onnx_format", "onnx_stages_format"]


@dataclass(frozen=True)
class ExportResult:
    """An exported network.

    Attributes:
        path: of the file or folder.
        format: name of the format.
        size: bytes, without checksums.
        seconds: time of writing and verification.
        verification: what was compared with the network.
    """

    path: Path
    format: str
    size: int
    seconds: float
    verification: Verification

    def __str__(self) -> str:
        found = self.verification
        return (
            f"{self.path}: {self.format}, {self.size / 1e6:.1f} MB, verified on {found.batches} "
            f"batches; logits differ by at most {found.largest_error:.1e} of the largest"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "size": self.size,
            "seconds": self.seconds,
            "batches": self.verification.batches,
            "unreachable": self.verification.unreachable,
            "largest_error": self.verification.largest_error,
        }


@check_keywords
def export(
    ee: EarlyExitModule,
    path: str | Path,
    format: str = "onnx",
    *,
    images: Tensor | None = None,
    preprocessing: TransformConfig | None = None,
) -> ExportResult:
    """Write a network for a runtime without torch, and verify what was written.

    The exported network makes the same decisions: each sample stops at its exit. Its thresholds are
    the active ones, and the runtime can replace them by those of other operating points. Exits with
    an infinite threshold are evaluated there: remove them by `leenet_fx.prune` first. If early
    exits are disabled (`NeverExit`), the backbone alone is exported. Images have the size that
    `attach` had.

    Before the file is put in place, exits and logits are compared with those of `ee.predict`: on
    batches of 1 to 4 random images, and of the given ones, under thresholds for every way in which
    the samples can spread over the exits (40 ways of each batch size, evenly spread, if there are
    more); on a batch of 32; and on an empty one. See `leenet_fx.export.verify`.

    Args:
        ee: the network, in evaluation mode and float32. It is not changed.
        path: of the file or folder to write. An earlier export is replaced.
        format: "onnx": one ONNX file with nested conditions; "onnx-stages": a folder with one ONNX
            file for each stage; both for `leenet_fx.run`. Or another registered format.
        images: real images (n, …), as the network expects them, to verify with.
        preprocessing: how images become the network's input, for the description in the file; None
            takes what the library of a timm or torchvision model says.

    Raises:
        ModeError: the network is in training mode.
        InputError: not a network with exits, or images that do not fit.
        ExportError: the format cannot express the network, or the file computes something else.
        StorageError: the path cannot be written to, or has something else.
        DependencyError: a library is missing; the message names the extra that has it.
        UnknownNameError: no such format.
    """
    start = time.perf_counter()
    chosen = get_format(format)()
    chosen.check_installed(format)
    plan = export_plan(ee)
    sample = _checked_images(plan, images)
    path = Path(path)
    if not path.name:
        raise StorageError(f"'{path}' has no name: choose the path of a file.")
    check_place(path, is_folder=chosen.is_folder)
    description = describe(plan, format, preprocessing)
    with working_folder(path) as folder:
        written = folder / path.name
        chosen.write(plan, description, written)
        add_checksums(written)
        found = verify(
            plan, chosen.open(plan, written), images=sample, batch_sizes=chosen.batch_sizes
        )
        size = _size(written)
        place(written, path)
    return ExportResult(path, format, size, time.perf_counter() - start, found)


def _checked_images(plan: ExportPlan, images: Tensor | None) -> Tensor | None:
    if images is None:
        return None
    plan.ee.check_images(images)
    if tuple(images.shape[1:]) != plan.image_shape:
        raise InputError(
            f"The network is exported for images of {plan.image_shape}, got "
            f"{tuple(images.shape[1:])}: attach with example_inputs of that size."
        )
    return images.detach().cpu() if len(images) else None


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)
