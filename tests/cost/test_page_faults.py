"""A warning where times depend on memory that glibc hands back."""

import logging
import mmap

import pytest
import torch

from leenet_fx.cost.page_faults import SETTINGS, page_faults, warn_if_memory_is_returned

CPU = torch.device("cpu")


def test_new_pages_are_counted():
    before = page_faults(CPU)
    if before is None:
        pytest.skip("no glibc")
    # A mapping of one's own is new, where the allocator may reuse pages it has.
    with mmap.mmap(-1, 2**26) as block:
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
        after = page_faults(CPU)
    # Transparent huge pages have 2 MiB instead of 4 KiB.
    assert after - before >= 2**26 / 2**21
    assert page_faults(torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("faults", "seconds", "warned"),
    [(600_000, 11.0, True), (600_000, 100.0, False), (500, 0.001, False), (None, 1.0, False)],
)
def test_one_line_names_both_settings(caplog, monkeypatch, faults, seconds, warned):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        warn_if_memory_is_returned(faults, seconds)
    assert len(caplog.records) == warned
    assert all(name in caplog.text for name in SETTINGS) == warned
    caplog.clear()
    for name in SETTINGS:
        monkeypatch.setenv(name, "4294967296")
    warn_if_memory_is_returned(faults, seconds)
    assert not caplog.records
