"""Memory of large tensors, which glibc would hand back to the system after each batch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""Parameters of `mallopt`, by the environment variables that set them (glibc's malloc.h)."""

_LARGEST = 2**31 - 1
"""Bytes; `mallopt` takes an int."""


def keep_memory() -> bool:
    """Let glibc keep memory that is freed, unless the environment says otherwise.

    Fetching the pages again for each batch can take longer than the network.

    Returns:
        Whether it does now.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in _PARAMETERS):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(number, _LARGEST) for number in _PARAMETERS.values())
