"""Memory that glibc would hand back, and that the command line keeps."""

import os
import platform
import subprocess
import sys

import pytest

from leenet_fx.cost.page_faults import SETTINGS

PROGRAM = """
import sys
import torch
from torch import nn
from leenet_fx.cost.page_faults import keep_memory, page_faults

kept = keep_memory() if sys.argv[1] == "keep" else False
layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(6)]
network = nn.Sequential(*layers)
images = torch.rand(32, 8, 128, 128)
with torch.inference_mode():
    for _ in range(4):
        network(images)
    before = page_faults(torch.device("cpu"))
    for _ in range(4):
        network(images)
print(kept, page_faults(torch.device("cpu")) - before)
"""


def measured(argument, **variables):
    """Return whether memory is said to be kept, and the page faults of four batches."""
    clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, **variables},
    )
    kept, faults = result.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_used_again():
    kept, faults = measured("keep")
    assert kept
    # Transparent huge pages have 2 MiB instead of 4 KiB: eight faults for a tensor of 16 MiB.
    fetched = measured("leave")[1]
    assert fetched >= 4 * 8
    assert faults < fetched / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_settings_of_the_environment_stay():
    assert not measured("keep", MALLOC_TRIM_THRESHOLD_="65536")[0]
