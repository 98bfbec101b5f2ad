"""Models by name: timm's, torchvision's, and factories in the user's own files."""

from __future__ import annotations

import importlib.util
import logging
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx.errors import InputError
from leenet_fx.graph import hf_models
from leenet_fx.registry import unknown_name

logger = logging.getLogger("leenet_fx")


def list_models(pattern: str = "*") -> list[str]:
    """List the exact names, `timm/NAME` and `torchvision/NAME`, that match an fnmatch pattern.

    A pattern without a slash is matched against NAME only. Architectures of transformers are listed
    for patterns that start with `hf/`.
    """
    if pattern.startswith("hf/"):
        return sorted(
            n for n in map("hf/{}".format, hf_models.architectures()) if fnmatch(n, pattern)
        )
    names = [f"torchvision/{name}" for name in _torchvision_names()]
    names += [f"timm/{name}" for name in _timm_names()]
    with_library = "/" in pattern
    return sorted(n for n in names if fnmatch(n if with_library else n.split("/", 1)[1], pattern))


def create_model(
    name: str, *, pretrained: bool = False, device: str | torch.device | None = None, **options: Any
) -> nn.Module:
    """Build a model by name.

    Args:
        name: `timm/NAME` or `torchvision/NAME`; a name without a library means torchvision's model
            if there is one, else timm's; `hf/ARCHITECTURE` is an image classifier of transformers
            by its model type, with random weights, and `hf:OWNER/NAME` one with the weights of the
            Hugging Face hub; `path/to/file.py:factory` executes the user's own file and calls a
            function of it.
        pretrained: whether to load the library's weights (downloads them).
        device: device of the weights; "meta" allocates none, if the model supports it.
        options: keyword arguments of the library's builder or the factory.

    Raises:
        UnknownNameError: no such model; the nearest name is in the message.
        InputError: the file or its factory is missing, or returns no module.
    """
    with torch.device(device if device is not None else "cpu"):
        if ".py:" in name:
            return _from_file(name, options)
        if name.startswith("hf:"):
            return hf_models.from_hub(name[3:], options)
        if name.startswith("hf/"):
            return hf_models.build(name[3:], pretrained, options)
        library, _, rest = name.partition("/")
        if library == "timm":
            return _timm(rest, pretrained, options)
        if library == "torchvision":
            return _torchvision(rest, pretrained, options)
        if name in _torchvision_names():
            if name in _timm_names():
                logger.warning("'%s' means torchvision/%s; timm/%s exists too.", name, name, name)
            return _torchvision(name, pretrained, options)
        if name.split(".")[0] in _timm_names():
            return _timm(name, pretrained, options)
        raise unknown_name("model", name, {*_torchvision_names(), *_timm_names()})


def library_name(model: nn.Module) -> str | None:
    """Return `timm/NAME` of a model whose configuration is timm's, None for others."""
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or architecture not in _timm_names():
        return None
    tag = config.get("tag") if isinstance(config, dict) else None
    return f"timm/{architecture}.{tag}" if tag else f"timm/{architecture}"


def _torchvision_names() -> list[str]:
    from torchvision import models

    return [str(name) for name in models.list_models(module=models)]


def _timm_names() -> list[str]:
    import timm

    return [str(name) for name in timm.list_models()]


def _torchvision(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if name not in _torchvision_names():
        raise unknown_name("torchvision model", name, _torchvision_names())
    if name in ("googlenet", "inception_v3") and not pretrained:
        options = {"init_weights": False, **options}
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    assert isinstance(model, nn.Module)
    return model


def _timm(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    if name.split(".")[0] not in _timm_names():
        raise unknown_name("timm model", name, _timm_names())
    model = timm.create_model(name, pretrained=pretrained, **options)
    assert isinstance(model, nn.Module)
    return model


def _from_file(name: str, options: dict[str, Any]) -> nn.Module:
    file, _, factory = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise InputError(f"No file '{path}' for model '{name}'; expected path/to/file.py:factory.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Pickle and dataclasses look a module up by its name.
    name_is_free = path.stem not in sys.modules
    if name_is_free:
        sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if name_is_free:
            del sys.modules[path.stem]
        raise InputError(f"'{path}' failed: {type(error).__name__}: {error}.") from error
    if not callable(getattr(module, factory, None)):
        public = [n for n in vars(module) if not n.startswith("_") and callable(vars(module)[n])]
        raise unknown_name(f"factory of {path}", factory, public)
    try:
        model = getattr(module, factory)(**options)
    except Exception as error:
        raise InputError(f"'{name}' failed: {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"'{name}' returned a {type(model).__name__}, expected a torch.nn.Module.")
    return model
