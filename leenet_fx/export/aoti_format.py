"""The formats "aoti" and "aoti-cuda": a network compiled by AOTInductor, with `torch.cond`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from leenet_fx.errors import DependencyError, ExportError, first_line
from leenet_fx.export.conditional_module import check_suffix, conditional_program, program_runner
from leenet_fx.export.formats import ExportFormat, Runner, register_format
from leenet_fx.export.onnx_stages import quiet
from leenet_fx.export.stage_modules import ExportPlan
from leenet_fx.storage.json_files import encode

METADATA = "leenet_fx"
"""Key of the description in the metadata of the package."""


@register_format("aoti")
class AotiFormat(ExportFormat):
    """A `.pt2` package with compiled code for this machine's processor, with one variant of it."""

    extra = ""
    modules = ()
    device: ClassVar[str] = "cpu"

    def write(self, plan: ExportPlan, description: Mapping[str, Any], path: Path) -> None:
        from torch._inductor import aoti_compile_and_package

        check_suffix(path)
        program = conditional_program(plan, self.device)
        text = json.dumps(encode(description), ensure_ascii=False, allow_nan=False)
        options = {
            # With it, results are wrong where a branch reads a tensor of another layout.
            "layout_optimization": False,
            "aot_inductor.metadata": {METADATA: text},
            # With it, checks of inputs (AOTI_RUNTIME_CHECK_INPUTS) refuse batches of 0 and 1.
            "aot_inductor.check_lowerbound": False,
        }
        try:
            with torch.no_grad(), quiet(), _any_batch_size():
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        except Exception as error:
            # It raises errors of any kind.
            raise ExportError(
                f"AOTInductor cannot compile the network: {first_line(error)}"
            ) from error

    def open(self, plan: ExportPlan, path: Path) -> Runner:
        from torch._inductor import aoti_load_package

        return program_runner(aoti_load_package(str(path)), plan, self.device)

    def check_installed(self, name: str) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None and shutil.which("clang++") is None:
            raise DependencyError(
                f"The format '{name}' needs a C++ compiler, and '{compiler}' was not found: "
                "install one, or set CXX to its path."
            )


@contextmanager
def _any_batch_size() -> Iterator[None]:
    """Keep torch from limiting batches to 15, above which it would choose NNPACK's convolutions.

    The choice is made again when the package runs.
    """
    with torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
        yield


@register_format("aoti-cuda")
class AotiCudaFormat(AotiFormat):
    """The same for CUDA."""

    device = "cuda"

    def check_installed(self, name: str) -> None:
        super().check_installed(name)
        if not torch.cuda.is_available():
            raise DependencyError(f"The format '{name}' needs a CUDA device, and torch finds none.")
