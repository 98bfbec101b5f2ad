"""Published early-exit systems as presets of parts."""

from leenet_fx.methods import gated as _gated  # noqa: F401
from leenet_fx.methods import ungated as _ungated  # noqa: F401
from leenet_fx.methods.method import (
    DEFAULT,
    Method,
    get_method,
    list_methods,
    list_overrides,
    register_method,
)

__all__ = ["DEFAULT", "Method", "get_method", "list_methods", "list_overrides", "register_method"]
