"""The format "openvino": a folder with OpenVINO's two files, and a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leenet_fx.errors import ExportError, first_line
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.manifest import write_manifest
from leenet_fx.export.onnx_format import encoded
from leenet_fx.export.onnx_nested import THRESHOLDS, nest
from leenet_fx.export.onnx_stages import stage_models
from leenet_fx.export.stage_modules import ALPHA, ExportPlan
from leenet_fx.run import load
from leenet_fx.run.openvino_session import XML


@register_format("openvino")
class OpenVinoFormat(ExportFormat):
    """`network.xml`, `network.bin` and `manifest.json`, converted from the nested ONNX model.

    Thresholds, and α, are inputs without a default; `leenet_fx.run` passes the active ones.
    """

    extra = "openvino"
    modules = ("onnx", "onnxscript", "openvino")
    is_folder = True

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        import openvino

        model = nest(stage_models(plan), plan, takes_none=False)
        # OpenVINO takes an input that has a default value for a constant.
        for tensor in [t for t in model.graph.initializer if t.name in (THRESHOLDS, ALPHA)]:
            model.graph.initializer.remove(tensor)
        try:
            converted = openvino.Core().read_model(encoded(model))
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot express the network: {first_line(error)}"
            ) from error
        path.mkdir()
        openvino.save_model(converted, path / XML, compress_to_fp16=False)
        write_manifest(path, description)

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        network = load(path, threads=torch.get_num_threads())
        return lambda images, thresholds, alpha: network.predict(
            images, thresholds=thresholds, alpha=alpha
        )
