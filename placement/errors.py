"""The exceptions of this package."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PlacementError(ValueError):
    """Exits cannot be placed as requested on this network."""


class UnknownNameError(PlacementError, LookupError):
    """No strategy, block boundary or cost of that name; the message names the nearest."""


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not among `available`, naming the nearest that is.

    Args:
        kind: what was looked up, for instance "strategy".
        name: what was given.
        available: the valid names.
    """
    names = list(available)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownNameError(
        f"Unknown {kind} '{name}'.{hint} Available: {', '.join(sorted(names))}."
    )
