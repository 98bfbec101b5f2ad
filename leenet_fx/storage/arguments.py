"""The arguments of attach that are stored with a network: concrete_args and leaf_modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leenet_fx.digest import checksum
from leenet_fx.errors import StorageError
from leenet_fx.surgery.attach import class_name

OBJECT = "object"
"""Key of the description of a value that JSON does not have."""


def encode_arguments(concrete_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a model as plain values.

    Tensors become a checksum, and other objects the name of their class: they are compared, but not
    stored.
    """
    return {name: _encode(value) for name, value in concrete_args.items()}


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _encode(item) for key, item in value.items()}
    name = class_name(type(value))
    return {OBJECT: f"{name} {checksum(value.detach())}" if isinstance(value, Tensor) else name}


def decode_arguments(stored: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return arguments of a model that were stored as plain values; lists become tuples.

    Args:
        stored: result of `encode_arguments`.
        path: file that holds them, for messages.

    Raises:
        StorageError: one of them is, or contains, a value that is not stored.
    """
    return {name: _decode(name, value, path) for name, value in stored.items()}


def _decode(name: str, value: Any, path: Path) -> Any:
    if isinstance(value, Mapping):
        if OBJECT in value:
            raise StorageError(
                f"'{path}': the exits were attached with concrete_args={{'{name}': …}} of type "
                f"{str(value[OBJECT]).partition(' ')[0]}, which is not stored: attach with that "
                "value, and pass the network as model=."
            )
        return {key: _decode(name, item, path) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_decode(name, item, path) for item in value)
    return value


def find_classes(names: Sequence[str], model: nn.Module, path: Path) -> tuple[type[nn.Module], ...]:
    """Return the classes of a model's modules with these names, or of their bases.

    Args:
        names: `module.Class`; nothing is imported.
        model: the model.
        path: file that holds them, for messages.

    Raises:
        StorageError: no module of the model has such a class.
    """
    bases = {base for module in model.modules() for base in type(module).__mro__}
    classes = {class_name(cls): cls for cls in bases if issubclass(cls, nn.Module)}
    missing = [name for name in names if name not in classes]
    if missing:
        raise StorageError(
            f"'{path}': leaf_modules: expected a module of class {missing[0]}, found none."
        )
    return tuple(classes[name] for name in names)
