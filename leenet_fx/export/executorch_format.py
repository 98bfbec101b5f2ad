"""The format "executorch": one `.pte` file with a method for each stage, on XNNPACK.

A program with `torch.cond` in one method would be right, but slow: branches are not delegated to
XNNPACK. So the host composes the methods, by the rules in `leenet_fx.export.stage_modules`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leenet_fx.errors import ExportError, first_line
from leenet_fx.export.conditional_module import example_settings
from leenet_fx.export.description import tensor_list
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.onnx_stages import quiet
from leenet_fx.export.stage_modules import ALPHA, ExportPlan, StageModule
from leenet_fx.run import Prediction
from leenet_fx.runtime.outputs import build_prediction
from leenet_fx.storage.json_files import encode

LARGEST_BATCH = 4
"""ExecuTorch plans memory for the largest batch."""

DESCRIPTION = "leenet_fx"
"""Name of the method that returns the description as JSON."""


@register_format("executorch")
class ExecuTorchFormat(ExportFormat):
    """Methods `stage0` to `stageN`, for 1 to 4 samples, and the method `leenet_fx`."""

    extra = "executorch"
    modules = ("executorch",)
    batch_sizes = tuple(range(1, LARGEST_BATCH + 1))

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

        stages = [
            {"inputs": tensor_list(stage.inputs), "outputs": tensor_list(stage.outputs)}
            for stage in plan.stages
        ]
        text = json.dumps(encode({**description, "stages": stages}), allow_nan=False)
        try:
            with torch.no_grad(), quiet():
                programs = {
                    f"stage{stage.index}": _program(stage, example)
                    for stage, example in zip(plan.stages, plan.examples, strict=True)
                }
                lowered = to_edge_transform_and_lower(
                    programs,
                    partitioner=[XnnpackPartitioner()],
                    constant_methods={DESCRIPTION: text},
                ).to_executorch()
        except Exception as error:
            # It raises errors of any kind.
            raise ExportError(
                f"ExecuTorch cannot express the network: {first_line(error)}"
            ) from error
        missing = sorted(_operators(lowered) - _kernels())
        if missing:
            raise ExportError(
                f"ExecuTorch has no kernels for {', '.join(missing)}, which the network, its exits "
                "or its policy need."
            )
        path.write_bytes(lowered.buffer)

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        with quiet():
            from executorch.runtime import Runtime

        # A program from bytes would not keep them.
        program = Runtime.get().load_program(path)
        methods = [program.load_method(f"stage{stage.index}") for stage in plan.stages]
        return _host_loop(plan, [method.execute for method in methods])


def _operators(lowered: Any) -> set[str]:
    """Return the operators that a program calls."""
    return {
        f"{operator.name}.{operator.overload}" if operator.overload else operator.name
        for method in lowered.executorch_program.execution_plan
        for operator in method.operators
    }


def _kernels() -> set[str]:
    """Return the operators of the runtime that is installed."""
    with quiet():
        from executorch.runtime import Runtime

    return set(Runtime.get().operator_registry.operator_names)


def _program(stage: StageModule, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    axes = [None if s.batch_axis is None else {s.batch_axis: batch} for s in stage.inputs]
    return torch.export.export(stage, example, dynamic_shapes=(tuple(axes),))


def _host_loop(plan: ExportPlan, methods: Sequence[Callable[..., Sequence[Tensor]]]) -> Runner:
    sign, settings = plan.decision.sign, example_settings(plan)

    def run(
        images: NDArray[np.float32], thresholds: Sequence[float] | None, alpha: float | None
    ) -> Prediction:
        bounds = settings[0] if thresholds is None and settings else thresholds
        weight = settings[1:] if alpha is None else (torch.tensor(alpha),)
        logits = torch.empty(len(images), plan.ee.spec.num_classes)
        exits = torch.full((len(images),), plan.num_exits)
        rows, tensors = torch.arange(len(images)), [torch.from_numpy(images)]
        for index, (stage, method) in enumerate(zip(plan.stages, methods, strict=True)):
            reads_alpha = stage.inputs[-1].name == ALPHA
            # The memory of outputs is used again by the next call.
            found, *others = (
                output.clone() for output in method([*tensors, *(weight if reads_alpha else ())])
            )
            logits[rows] = found
            if not others:
                break
            confidence, *tensors = others
            leaves = confidence >= sign * torch.as_tensor(bounds, dtype=torch.float32)[index]
            exits[rows[leaves]] = index
            stays = leaves.logical_not().nonzero().squeeze(1)
            if not len(stays):
                break
            rows = rows[stays]
            tensors = [
                t
                if spec.batch_axis is None
                else t.index_select(spec.batch_axis, stays).contiguous()
                for t, spec in zip(tensors, stage.passed, strict=True)
            ]
        confidence = build_prediction(logits, exits, None, plan.decision.temperatures).confidence
        return Prediction(logits.numpy(), exits.numpy(), confidence.numpy())

    return run
