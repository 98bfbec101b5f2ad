"""The machine and the library versions that a measurement is made with."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LIBRARIES = ("leenet-fx", "torch", "torchvision", "timm", "networkx", "numpy")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return library versions, platform, device, number of threads and date.

    Args:
        device: the device to name.
    """
    import torch

    values: dict[str, Any] = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            values[library] = version(library)
        except PackageNotFoundError:
            values[library] = "not installed"
    values["platform"] = f"{platform.system()} {platform.machine()}"
    values["device"] = device_name(device)
    values["threads"] = torch.get_num_threads()
    values["date"] = datetime.now(UTC).date().isoformat()
    return values


def device_name(device: torch.device | str = "cpu") -> str:
    """Return the name of the processor or of the GPU."""
    import torch

    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
