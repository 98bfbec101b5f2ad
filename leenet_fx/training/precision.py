"""Choice of the precision of training by what the device computes fast."""

from __future__ import annotations

import re
from pathlib import Path

import torch

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Features of processors (x86 and ARM, as Linux names them) with instructions for bfloat16."""

CPU_INFO = Path("/proc/cpuinfo")


def choose_precision(accelerator: str) -> str:
    """Return "bf16-mixed" where the device has instructions for it, else "32-true".

    Processors without them emulate bfloat16, several times slower than they compute in float32.

    Args:
        accelerator: Lightning Fabric's: "cpu", "cuda", "gpu", "auto", …
    """
    on_gpu = accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()
    if on_gpu:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = accelerator in ("cpu", "auto") and has_bf16_instructions(_cpu_info())
    return "bf16-mixed" if fast else "32-true"


def has_bf16_instructions(cpu_info: str) -> bool:
    """Return whether a processor has instructions for bfloat16.

    Args:
        cpu_info: content of /proc/cpuinfo.
    """
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpu_info, re.MULTILINE)
    return bool(lines) and all(BF16_FLAGS & set(line.split()) for line in lines)


def _cpu_info() -> str:
    """Return the description of the processors, empty where the system has none."""
    try:
        return CPU_INFO.read_text()
    except OSError:
        return ""
