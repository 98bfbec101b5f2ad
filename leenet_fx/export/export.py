"""export: a network with exits as a file for another runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.errors import ExportError, InputError, StorageError
from leenet_fx.export import (
    aoti_format,
    executorch_format,
    onnx_format,
    onnx_stages_format,
    openvino_format,
    torch_export_format,
)
from leenet_fx.export.description import describe
from leenet_fx.export.formats import ExportFormat, get_format
from leenet_fx.export.onnx_stages import stage_models
from leenet_fx.export.placing import add_checksums, check_place, place, working_folder
from leenet_fx.export.quantize import (
    QuantizationReport,
    QuantizedReference,
    compare_quantized,
    quantize_stages,
)
from leenet_fx.export.stage_modules import ExportPlan, export_plan
from leenet_fx.export.verify import TOLERANCE, Verification, verify
from leenet_fx.keywords import check_keywords
from leenet_fx.surgery.module import EarlyExitModule

__all__ = [
    "ExportResult",
    "aoti_format",
    "executorch_format",
    "export",
    "onnx_format",
    "onnx_stages_format",
    "openvino_format",
    "torch_export_format",
]


QUANTIZED_TOLERANCE = 0.02
"""As `TOLERANCE`: the last bit of a float decides now and then which integer it is rounded to."""


@dataclass(frozen=True)
class ExportResult:
    """An exported network.

    Attributes:
        path: of the file or folder.
        format: name of the format.
        size: bytes, without checksums.
        seconds: time of writing and verification.
        verification: what was compared with the network.
        quantization: predictions and exits before and after it.
    """

    path: Path
    format: str
    size: int
    seconds: float
    verification: Verification
    quantization: QuantizationReport | None = None

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
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
        }


@check_keywords
def export(
    ee: EarlyExitModule,
    path: str | Path,
    format: str = "onnx",
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    quantize: str | None = None,
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
    more); and, if the format has them, on a batch of 32 and an empty one. See
    `leenet_fx.export.verify`.

    Args:
        ee: the network, in evaluation mode and float32. It is not changed.
        path: of the file or folder to write. An earlier export is replaced.
        format: "onnx": one ONNX file with nested conditions; "onnx-stages": a folder with one ONNX
            file for each stage; "openvino": a folder with OpenVINO's files; these for
            `leenet_fx.run`. "torch-export": a `.pt2` file for `torch.export.load`; "aoti" and
            "aoti-cuda": one with compiled code, for `torch._inductor.aoti_load_package`.
            "executorch": a `.pte` file with a method for each stage. Or another registered format.
        images: real images (n, …), as the network expects them, to verify with, and to calibrate
            8-bit integers on.
        labels: (n,) their classes, to report the accuracy after quantization.
        quantize: "int8" for weights and activations in 8-bit integers, of the formats "onnx" and
            "onnx-stages". Ranges are calibrated on every second image, stage by stage; predictions
            and exits before and after are compared on the others, and reported in the result and
            in the file's description. The file is verified against the quantized stages.
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
    if quantize is not None:
        _check_quantize(quantize, format, chosen, sample, labels)
    path = Path(path)
    if not path.name:
        raise StorageError(f"'{path}' has no name: choose the path of a file.")
    check_place(path, is_folder=chosen.is_folder)
    description = describe(plan, format, preprocessing)
    report, reference, tolerance = None, None, TOLERANCE
    if quantize is not None:
        assert sample is not None
        chosen.models = quantize_stages(plan, stage_models(plan), sample[::2])
        reference, tolerance = QuantizedReference(plan, chosen.models), QUANTIZED_TOLERANCE
        held_out = None if labels is None else labels[1::2]
        report = compare_quantized(plan, reference, sample[1::2], held_out, len(sample[::2]))
        description |= {"quantization": {"kind": quantize, **report.to_dict()}}
    with working_folder(path) as folder:
        written = folder / path.name
        chosen.write(plan, description, written)
        add_checksums(written)
        found = verify(
            plan,
            chosen.open(plan, written),
            images=sample,
            batch_sizes=chosen.batch_sizes,
            tolerance=tolerance,
            reference=reference,
        )
        size = _size(written)
        place(written, path)
    return ExportResult(path, format, size, time.perf_counter() - start, found, report)


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


def _check_quantize(
    quantize: str,
    format: str,
    chosen: ExportFormat,
    images: Tensor | None,
    labels: Tensor | None,
) -> None:
    if quantize != "int8":
        raise InputError(f"quantize must be 'int8' or None, got {quantize!r}.")
    if not chosen.can_quantize:
        raise ExportError(
            f"The format '{format}' cannot be quantized here: 'onnx' and 'onnx-stages' can."
        )
    if images is None or len(images) < 2:
        raise InputError("quantize needs images: pass some hundred real ones, at least two.")
    if labels is not None and labels.shape != images.shape[:1]:
        raise InputError(f"Expected {len(images)} labels, got shape {tuple(labels.shape)}.")


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)
