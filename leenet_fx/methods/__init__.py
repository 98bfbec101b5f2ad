"""Published early-exit systems as presets of parts."""

from leenet_fx.methods import leenet as _leenet  # noqa: F401
from leenet_fx.methods.method import Method, get_method, list_methods, register_method

__all__ = ["Method", "get_method", "list_methods", "register_method"]
