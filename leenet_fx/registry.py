"""Registries of parts by name, with suggestions for unknown names and entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib.metadata import entry_points
from typing import Generic, TypeVar

import placement.errors
from leenet_fx.errors import UnknownNameError

T = TypeVar("T")


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not available; its message contains the nearest one.

    Args:
        kind: what the name is of, for instance "gate".
        name: the unknown name.
        available: the valid names.
    """
    return UnknownNameError(str(placement.errors.unknown_name(kind, name, available)))


class Registry(Generic[T]):
    """The parts of one kind, by name.

    Other packages add parts with the `register` decorator, or by an entry point whose name is the
    part's name; entry points are read when a name is first looked up.

    Attributes:
        kind: what the parts are, in error messages.
        group: group of the entry points.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._parts: dict[str, T] = {}
        self._entry_points_read = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a part under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.kind} '{name}' is already registered.")
            self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """Return the part registered under `name`.

        Raises:
            UnknownNameError: no such part; the nearest name is in the message.
        """
        self._read_entry_points()
        try:
            return self._parts[name]
        except (KeyError, TypeError):
            raise unknown_name(self.kind, name, self._parts) from None

    def names(self, pattern: str = "*") -> list[str]:
        """Return the registered names that match an fnmatch pattern, sorted."""
        self._read_entry_points()
        return sorted(name for name in self._parts if fnmatch(name, pattern))

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for point in entry_points(group=self.group):
            if point.name not in self._parts:
                self._parts[point.name] = point.load()
