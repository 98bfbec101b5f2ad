"""The format "torch-export": a program of torch.export with `torch.cond`."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from leenet_fx.export.conditional_module import check_suffix, conditional_program, program_runner
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.storage.json_files import encode

DESCRIPTION = "leenet_fx.json"
"""Name of the description among the extra files."""

DEBUGGING = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Entries of nodes that nothing reads."""


@register_format("torch-export")
class TorchExportFormat(ExportFormat):
    """A `.pt2` file, without sample inputs and where each node comes from."""

    extra = ""
    modules = ()

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        check_suffix(path)
        program = conditional_program(plan)
        _slim(program)
        text = json.dumps(encode(description), ensure_ascii=False, allow_nan=False)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={DESCRIPTION: text})
        path.write_bytes(buffer.getvalue())

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        with warnings.catch_warnings():
            # torch 2.11 reads weights through buffers that it warns about.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            program = torch.export.load(path)
        return program_runner(program.module(), plan)


def _slim(program: torch.export.ExportedProgram) -> None:
    """Remove what only debugging reads, megabytes of a file."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                for key in DEBUGGING:
                    node.meta.pop(key, None)
