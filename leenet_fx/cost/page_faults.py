"""Memory that the C library hands back to the system, and has to fetch again for the next batch."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("leenet_fx")

SETTINGS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""Environment variables of glibc, sizes in bytes from which memory is handed back, and the
parameters of `mallopt` that they set (glibc's malloc.h)."""

LARGEST = 2**31 - 1
"""Bytes; `mallopt` takes an int."""

PER_SECOND = 10_000
"""Page faults per second from which times depend on them: a fault takes 0.5 to 10 µs."""


def page_faults(device: torch.device) -> int | None:
    """Return the number of pages that the process has fetched so far; None where none matter.

    Args:
        device: that computes; a GPU has memory of its own.
    """
    if device.type != "cpu" or not _has_glibc():
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


def keep_memory() -> bool:
    """Let glibc keep memory that is freed, unless the environment says otherwise.

    Fetching the pages again for each batch can take longer than the network.

    Returns:
        Whether it does now.
    """
    if not _has_glibc() or any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(number, LARGEST) for number in SETTINGS.values())


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
