"""Where training runs: on this process's device, or in several processes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import nn

from leenet_fx import errors
from leenet_fx.errors import EarlyExitError, InputError
from leenet_fx.surgery.module import EarlyExitModule, device_of
from leenet_fx.training.log import Epoch
from leenet_fx.training.trainer import restore, snapshot, trained_state

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

Work: TypeAlias = Callable[[Fabric, EarlyExitModule, "nn.Module | None", list[Epoch]], None]
"""Trains in place, on the device that Fabric chose, and appends to the history."""


def _generator(state: bytes, device: str) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return generator


def _reduce_generator(generator: torch.Generator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return _generator, (bytes(generator.get_state().tolist()), str(generator.device))


# On its way to another process a generator's state would be a tensor in shared memory that is gone
# before it is read.
ForkingPickler.register(torch.Generator, _reduce_generator)


def make_fabric(
    ee: EarlyExitModule,
    accelerator: str | None,
    devices: int | str | list[int],
    precision: str | None,
) -> Fabric:
    """Fabric for the device `ee` is on, or for what was asked.

    Raises:
        InputError: a precision that would convert the weights, or devices that are not there.
    """
    precision = "32-true" if precision is None else precision
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if accelerator is None:
        device = device_of(ee)
        accelerator = device.type
        if devices == 1 and device.index is not None:
            devices = [device.index]
    many = devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    strategy = ("ddp" if launched else "ddp_spawn") if many or launched else "auto"
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            precision=precision,  # type: ignore[arg-type]
            strategy=strategy,
        )
    except Exception as error:
        raise InputError(
            f"accelerator={accelerator!r}, devices={devices!r}: {errors.first_line(error)}"
        ) from error


def run(
    fabric: Fabric,
    ee: EarlyExitModule,
    final_path: str | None,
    work: Work,
    history: list[Epoch],
    backbone: bool = False,
) -> None:
    """Does the work here, or in processes that Fabric starts; weights and history end up here.

    Args:
        fabric: where to.
        ee: the network.
        final_path: name of the final classifier, where it trains.
        work: what to do.
        history: of epochs; appended to.
        backbone: whether the backbone trains.

    Raises:
        EarlyExitError: as the work does; what was trained until then is in place.
    """
    launcher = fabric.strategy.launcher
    if launcher is None or launcher.is_interactive_compatible or not _spawns(launcher):
        fabric.launch()
        with _moved(ee, fabric.device):
            work(fabric, ee, _module(ee, final_path), history)
        return
    with tempfile.TemporaryDirectory(prefix="leenet-fx-") as folder:
        file = Path(folder) / "trained.pt"
        there = partial(
            _in_process,
            ee=ee,
            final_path=final_path,
            work=work,
            history=list(history),
            file=file,
            path=list(sys.path),
            backbone=backbone,
        )
        fabric.launch(there)
        found = torch.load(file, map_location="cpu", weights_only=True)
    restore(trained_state(ee, _module(ee, final_path), backbone=backbone), found["state"])
    history[:] = [Epoch(**epoch) for epoch in found["history"]]
    if found["error"] is not None:
        kind, message = found["error"]
        raise getattr(errors, kind)(message)


def _in_process(
    fabric: Fabric,
    ee: EarlyExitModule,
    final_path: str | None,
    work: Work,
    history: list[Epoch],
    file: Path,
    path: list[str],
    backbone: bool,
) -> None:
    sys.path[:] = path
    error = None
    # The weights came in memory that all processes share; each trains its own copy.
    for tensor in (*ee.parameters(), *ee.buffers()):
        tensor.data = tensor.data.clone()
    fabric.barrier()
    final = _module(ee, final_path)
    ee.to(fabric.device)
    try:
        work(fabric, ee, final, history)
    except EarlyExitError as raised:
        if not hasattr(errors, type(raised).__name__):
            raise
        error = [type(raised).__name__, str(raised)]
    if fabric.is_global_zero:
        state = trained_state(ee, final, backbone=backbone)
        found = {
            "state": [value.cpu() for value in snapshot(state)],
            "history": [asdict(epoch) for epoch in history],
            "error": error,
        }
        torch.save(found, file)


def _spawns(launcher: object) -> bool:
    return type(launcher).__name__ == "_MultiProcessingLauncher"


def _module(ee: EarlyExitModule, path: str | None) -> nn.Module | None:
    return None if path is None else ee.get_submodule(path)


@contextmanager
def _moved(ee: EarlyExitModule, device: torch.device) -> Iterator[None]:
    """The network on another device for as long as it trains."""
    before = device_of(ee)
    if before == device:
        yield
        return
    ee.to(device)
    try:
        yield
    finally:
        ee.to(before)
