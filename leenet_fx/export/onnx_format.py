"""The format "onnx": one file with nested conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from leenet_fx.errors import ExportError
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.onnx_nested import nest
from leenet_fx.export.onnx_stages import stage_models
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.run import load
from leenet_fx.run.files import PREFIX
from leenet_fx.storage.json_files import encode

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 2**20
"""Bytes that a file in the encoding of ONNX can have, less room for its description."""


@register_format("onnx")
class OnnxFormat(ExportFormat):
    """One ONNX file: see `leenet_fx.export.onnx_nested`."""

    extra = "onnx"
    modules = ("onnx", "onnxscript", "onnxruntime")

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        model = nest(stage_models(plan), plan)
        add_metadata(model, description)
        path.write_bytes(encoded(model))

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        network = load(path, threads=torch.get_num_threads())
        return lambda images, thresholds, alpha: network.predict(
            images, thresholds=thresholds, alpha=alpha
        )


def add_metadata(model: onnx.ModelProto, description: Mapping[str, Any]) -> None:
    """Write a description into the metadata of a model, each part as JSON."""
    for key, value in description.items():
        text = json.dumps(encode(value), ensure_ascii=False, allow_nan=False)
        model.metadata_props.add(key=f"{PREFIX}{key}", value=text)


def encoded(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model.

    Raises:
        ExportError: it is larger than the encoding allows.
    """
    size = model.ByteSize()
    if size > LARGEST:
        raise ExportError(
            f"The network has {size / 2**30:.1f} GiB and one ONNX file holds less than 2: export "
            "it with format='onnx-stages'."
        )
    content: bytes = model.SerializeToString()
    return content
