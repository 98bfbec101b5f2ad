"""Devices and processes that training runs on."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from leenet_fx import errors
from leenet_fx.errors import EarlyExitError, InputError, TrainingError
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.metrics import Epoch
from leenet_fx.training.parameters import restore, snapshot, trained_state
from leenet_fx.training.precision import choose_precision
from leenet_fx.training.sharding import shard_backbone
from leenet_fx.training.transfer import Transferable

STRATEGIES = ("ddp", "fsdp")

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "auto")

Work: TypeAlias = Callable[[Fabric, EarlyExitModule, "nn.Module | None", list[Epoch]], None]
"""Trains a network in place, on Fabric's device, and appends to the history."""


def make_fabric(
    ee: EarlyExitModule,
    accelerator: str | None,
    devices: int | str | list[int],
    precision: str | None,
    num_nodes: int = 1,
    strategy: str | None = None,
) -> Fabric:
    """Return a Fabric for the requested devices, or for the device of the network.

    Args:
        ee: the network.
        accelerator: Fabric's; None takes the device of `ee`.
        devices: Fabric's.
        precision: one of `PRECISIONS`; None takes the first, "auto" what the device is fast at.
        num_nodes: number of machines.
        strategy: one of `STRATEGIES`; None takes "ddp" if there are several processes.

    Raises:
        InputError: a precision that would convert the weights, devices that do not exist, several
            machines without a launcher, or shards without a GPU.
    """
    if strategy is not None and strategy not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    precision = "32-true" if precision is None else precision
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    if accelerator is None:
        device = ee.device
        accelerator = device.type
        if devices == 1 and device.index is not None:
            devices = [device.index]
    if strategy == "fsdp" and accelerator not in ("cuda", "gpu"):
        raise InputError(
            f"strategy='fsdp' shards the backbone over GPUs, and this run is on {accelerator!r}: "
            "pass accelerator='cuda' where there are GPUs, or strategy='ddp'."
        )
    if precision == "auto":
        precision = choose_precision(accelerator)
    several = devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if num_nodes != 1 and not launched:
        raise InputError(
            f"num_nodes={num_nodes!r} needs processes on several machines: start this script on "
            "each of them with torchrun."
        )
    processes = several or launched or strategy is not None
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,  # type: ignore[arg-type]
            strategy=("ddp" if launched else "ddp_spawn") if processes else "auto",
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
    sharded: bool = False,
) -> None:
    """Train in this process, or in processes that Fabric starts, and collect the weights here.

    Args:
        fabric: determines the processes and devices.
        ee: the network.
        final_path: module name of the final classifier, if it is trained.
        work: trains the network; pickled if processes are started.
        history: is appended to.
        backbone: whether the backbone is trained.
        sharded: whether the processes share out the weights of the backbone.

    Raises:
        EarlyExitError: as `work` raises it; the weights trained until then are in place.
        TrainingError: a process was killed.
    """
    launcher = fabric.strategy.launcher
    if launcher is None or launcher.is_interactive_compatible or not _spawns(launcher):
        fabric.launch()
        if sharded:
            _train_shards(fabric, ee, final_path, work, history)
            return
        with _moved(ee, fabric.device):
            work(fabric, ee, _submodule(ee, final_path), history)
        return
    with tempfile.TemporaryDirectory(prefix="leenet-fx-") as folder:
        file = Path(folder) / "trained.pt"
        function = partial(
            _run_in_process,
            ee=ee,
            final_path=final_path,
            work=work,
            history=list(history),
            file=file,
            path=list(sys.path),
            backbone=backbone,
            sharded=sharded,
        )
        try:
            fabric.launch(Transferable(function))
        except ProcessExitedException as error:
            raise TrainingError(
                f"A training process ended unexpectedly: {errors.first_line(error)}. The weights "
                "are as before; with out=, resume=True goes on from the last checkpoint, with any "
                "number of devices."
            ) from error
        result = torch.load(file, map_location="cpu", weights_only=True)
    restore(trained_state(ee, _submodule(ee, final_path), backbone=backbone), result["state"])
    history[:] = [Epoch(**epoch) for epoch in result["history"]]
    if result["error"] is not None:
        kind, message = result["error"]
        raise getattr(errors, kind)(message)


def _run_in_process(
    fabric: Fabric,
    ee: EarlyExitModule,
    final_path: str | None,
    work: Work,
    history: list[Epoch],
    file: Path,
    path: list[str],
    backbone: bool,
    sharded: bool,
) -> None:
    """Train in a process that Fabric started; process 0 writes the result to `file`."""
    sys.path[:] = path
    error = None
    # The weights are in memory that all processes share; each trains its own copy.
    for tensor in (*ee.parameters(), *ee.buffers()):
        tensor.data = tensor.data.clone()
    fabric.barrier()
    final = _submodule(ee, final_path)
    ee.to(fabric.device)
    if sharded:
        shard_backbone(ee, final=final)
    try:
        work(fabric, ee, final, history)
    except EarlyExitError as raised:
        if not hasattr(errors, type(raised).__name__):
            raise
        error = [type(raised).__name__, str(raised)]
    if fabric.is_global_zero:
        state = trained_state(ee, final, backbone=backbone)
        result = {
            "state": [value.cpu() for value in snapshot(state)],
            "history": [asdict(epoch) for epoch in history],
            "error": error,
        }
        torch.save(result, file)


def _train_shards(
    fabric: Fabric,
    ee: EarlyExitModule,
    final_path: str | None,
    work: Work,
    history: list[Epoch],
) -> None:
    """Train a copy with a sharded backbone, and take over the weights that were trained."""
    copied = copy.deepcopy(ee).to(fabric.device)
    final = _submodule(copied, final_path)
    shard_backbone(copied, final=final)
    try:
        work(fabric, copied, final, history)
    finally:
        trained = snapshot(trained_state(copied, final))
        restore(trained_state(ee, _submodule(ee, final_path)), trained)


def _spawns(launcher: Any) -> bool:
    return type(launcher).__name__ == "_MultiProcessingLauncher"


def _submodule(ee: EarlyExitModule, path: str | None) -> nn.Module | None:
    return None if path is None else ee.get_submodule(path)


@contextmanager
def _moved(ee: EarlyExitModule, device: torch.device) -> Iterator[None]:
    """Move the network to a device while it is trained."""
    before = ee.device
    if before == device:
        yield
        return
    ee.to(device)
    try:
        yield
    finally:
        ee.to(before)
