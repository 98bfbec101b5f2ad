"""The machine a measurement was made on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_name(device: torch.device | str = "cpu") -> str:
    """The processor's name, or the GPU's."""
    import torch

    asked = torch.device(device)
    if asked.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(asked)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
