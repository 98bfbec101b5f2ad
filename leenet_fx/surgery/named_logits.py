"""Logits in the form of models that return them by name."""

from __future__ import annotations

from typing import Any


class NamedLogits(dict[str, Any]):
    """A dictionary with `logits`, which is an attribute too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"A network with exits returns logits only, not '{name}'.")
