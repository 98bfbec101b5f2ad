"""Memory that the C library hands back to the system, and has to fetch again for the next batch."""

from __future__ import annotations

import logging
import os
import platform
import sys

import torch

logger = logging.getLogger("leenet_fx")

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
"""Environment variables of glibc: sizes in bytes from which memory is handed back."""

PER_SECOND = 10_000
"""Page faults per second from which times depend on them: a fault takes 0.5 to 10 µs."""


def page_faults(device: torch.device) -> int | None:
    """Return the number of pages that the process has fetched so far; None where none matter.

    Args:
        device: that computes; a GPU has memory of its own.
    """
    if device.type != "cpu" or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def warn_if_memory_is_returned(faults: int | None, seconds: float) -> None:
    """Log a warning if a measured time depends on memory that is handed back to the system.

    Args:
        faults: number of page faults while the time was measured; None if unknown.
        seconds: the time.
    """
    if faults is None or faults < PER_SECOND or faults < PER_SECOND * seconds:
        return
    if all(name in os.environ for name in SETTINGS):
        return
    logger.warning(
        "%d page faults in %.3g s: glibc hands the memory of large tensors back to the system and "
        "fetches it again, which may take longer than the network. %s keep it (bytes; set both "
        "before Python starts).",
        faults,
        seconds,
        " and ".join(f"{name}=4294967296" for name in SETTINGS),
    )
