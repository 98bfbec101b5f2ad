"""Published early-exit systems as presets of parts."""

from leenet_fx.methods import gated as _gated  # noqa: F401
from leenet_fx.methods import ungated as _ungated  # noqa: F401
from leenet_fx.methods.method import (
    CUSTOM,
    DEFAULT,
    Method,
    MethodConfig,
    as_method,
    get_method,
    list_method_options,
    list_methods,
    register_method,
)

__all__ = [
    "CUSTOM",
    "DEFAULT",
    "Method",
    "MethodConfig",
    "as_method",
    "get_method",
    "list_method_options",
    "list_methods",
    "register_method",
]
