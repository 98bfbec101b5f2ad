"""The exceptions of this package; `EarlyExitError` is the base of every error of the project."""


class EarlyExitError(Exception):
    """Base of every error raised by `placement` and `leenet_fx`."""


class UnknownNameError(EarlyExitError, LookupError):
    """A name is not in a registry; the message names the nearest one that is."""


class PlacementError(EarlyExitError, ValueError):
    """Exits cannot be placed as asked on this network."""
