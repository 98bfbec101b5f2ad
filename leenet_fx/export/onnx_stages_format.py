"""The format "onnx-stages": a folder with one ONNX file for each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from leenet_fx.export.description import tensor_list
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.onnx_format import encoded
from leenet_fx.export.onnx_stages import stage_models
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.run import load
from leenet_fx.run.files import MANIFEST
from leenet_fx.storage.json_files import encode


@register_format("onnx-stages")
class OnnxStagesFormat(ExportFormat):
    """`stage0.onnx` to `stageN.onnx`, and `manifest.json`; `leenet_fx.run` composes them."""

    extra = "onnx"
    modules = ("onnx", "onnxscript", "onnxruntime")
    is_folder = True

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        path.mkdir()
        stages = []
        for stage, model in zip(plan.stages, stage_models(plan), strict=True):
            name = f"stage{stage.index}.onnx"
            (path / name).write_bytes(encoded(model))
            stages.append(
                {
                    "file": name,
                    "inputs": tensor_list(stage.inputs),
                    "outputs": tensor_list(stage.outputs),
                }
            )
        content = encode({**description, "stages": stages})
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (path / MANIFEST).write_text(f"{text}\n", encoding="utf-8")

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        network = load(path, threads=torch.get_num_threads())
        return lambda images, thresholds, alpha: network.predict(
            images, thresholds=thresholds, alpha=alpha
        )
