"""A warning at the registration of hooks on modules that the graph does not call."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from torch import fx, nn

from leenet_fx.graph.compat import forward_hooks

logger = logging.getLogger("leenet_fx")


class UnreachedHooks(OrderedDict[int, Any]):
    """The hooks of a module whose layers the graph calls directly.

    Attributes:
        path: name of the module; "" registers without a warning.
    """

    path = ""

    def __setitem__(self, key: int, hook: Any) -> None:
        if self.path:
            logger.warning(
                "Hooks of '%s' do not run: the graph calls its layers directly. Register them on a "
                "layer, or attach with its class in leaf_modules=.",
                self.path,
            )
        super().__setitem__(key, hook)


def warn_of_unreached_hooks(root: nn.Module, graph: fx.Graph) -> None:
    """Let the registration of forward hooks warn, on modules that the graph does not call.

    Args:
        root: a network with exits.
        graph: its graph.
    """
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for path, module in root.named_modules():
        parts = path.split(".")
        outer = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if not path or parts[0] == "exits" or not called.isdisjoint(outer):
            continue
        for hooks, name in zip(
            forward_hooks(module), ("_forward_pre_hooks", "_forward_hooks"), strict=True
        ):
            unreached = UnreachedHooks(hooks)
            unreached.path = path
            module.__dict__[name] = unreached
