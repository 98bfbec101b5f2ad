"""Opens the network that a server serves: saved, or exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from leenet_fx.data.transforms import TransformConfig, override, transform_config
from leenet_fx.errors import StorageError
from leenet_fx.run import load as load_exported
from leenet_fx.run.files import MANIFEST
from leenet_fx.serving.exported_network import OnnxNetwork
from leenet_fx.serving.served_network import ServedNetwork
from leenet_fx.serving.torch_network import TorchNetwork
from leenet_fx.storage.config import CONFIG, read_config
from leenet_fx.storage.exits import library_model, load
from leenet_fx.storage.transform_file import read_transform


def open_network(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    threads: int | None = None,
    transform: Mapping[str, Any] | None = None,
) -> ServedNetwork:
    """Open a network for a server.

    Args:
        path: folder that `leenet_fx.save` wrote, or file or folder that `leenet_fx.export` wrote in
            the formats "onnx", "onnx-stages" or "openvino".
        model: the backbone of a saved network; None for the timm or torchvision model of its name.
        threads: number of threads of an exported network; None leaves it to its runtime.
        transform: "mean", "std" and "interpolation" that replace those of the network.

    Raises:
        StorageError: no such network, or a damaged one, or one with another graph than `model`.
        InputError: a saved network whose backbone has no name of a library.
        DependencyError: the runtime of an exported network is missing.
    """
    path = Path(path)
    changed = dict(transform or {})
    if is_saved(path):
        return _open_saved(path, model, changed)
    if not path.exists() or (path.is_dir() and not (path / MANIFEST).exists()):
        raise StorageError(
            f"'{path}' is no network that leenet_fx.save or leenet_fx.export wrote: expected a "
            f"folder with '{CONFIG}' or '{MANIFEST}', or a file with its checksum beside it."
        )
    exported = load_exported(path, threads=threads)
    preprocessing = exported.description["preprocessing"]
    config = None if preprocessing is None else TransformConfig.from_dict(preprocessing)
    if config is not None:
        config = override(config, **changed)
    return OnnxNetwork(exported, threads, config)


def is_saved(path: str | Path) -> bool:
    """Return whether a folder holds a network that `leenet_fx.save` wrote."""
    return (Path(path) / CONFIG).exists()


def _open_saved(folder: Path, model: nn.Module | None, changed: dict[str, Any]) -> TorchNetwork:
    if model is None:
        model = library_model(read_config(folder), folder / CONFIG)
    ee = load(folder, model)
    transform = read_transform(folder)
    if transform is None and len(ee.spec.image_shape) == 3 and ee.spec.image_shape[0] in (1, 3):
        transform = transform_config(model, ee.spec.image_shape, name=ee.spec.profile.model)
    return TorchNetwork(ee, None if transform is None else override(transform, **changed))
