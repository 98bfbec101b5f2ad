"""Published early-exit systems: branch architecture, training recipe and exit policy."""

# Importing a module registers its method.
from leenet_fx.methods import (  # noqa: F401
    boostnet,
    branchynet,
    calexnet,
    diffbranch,
    distilled,
    e2cm,
    eenet,
    eenets,
    hierarchical,
    jei_dnn,
    leenet,
    leenet_alpha,
    lgvit,
    msdnet,
    pabee,
    pteenet,
    shallow_deep,
    ztw,
)
from leenet_fx.methods.method import (
    CUSTOM,
    DEFAULT,
    Method,
    MethodConfig,
    TradeOff,
    as_method,
    get_method,
    list_method_options,
    list_methods,
    register_method,
)

get = get_method

__all__ = [
    "CUSTOM",
    "DEFAULT",
    "Method",
    "MethodConfig",
    "TradeOff",
    "as_method",
    "get",
    "get_method",
    "list_method_options",
    "list_methods",
    "register_method",
]
