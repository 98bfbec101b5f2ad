"""The exceptions of this package."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PlacementError(ValueError):
    """A placement of exits that is impossible on this network."""


class UnknownNameError(PlacementError, LookupError):
    """An unknown strategy, block boundary or cost; the message contains the nearest name."""


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not available; its message contains the nearest one.

    Args:
        kind: what the name is of, for instance "strategy".
        name: the unknown name.
        available: the valid names.
    """
    names = sorted(available)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names) if len(names) <= 30 else f"{len(names)} names"
    return UnknownNameError(f"Unknown {kind} '{name}'.{hint} Available: {shown}.")
