"""Tracing with torch.fx, with `self.training` kept symbolic."""

from __future__ import annotations

import logging
import math
import random
import traceback
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import fx, nn

from leenet_fx.errors import TraceError, first_line
from leenet_fx.graph.cloning import clone
from leenet_fx.graph.contexts import Contexts, detach_without_grad
from leenet_fx.graph.devices import follow_device
from leenet_fx.graph.encoders import run_layer_by_layer, runs_layer_by_layer
from leenet_fx.graph.probe import FACTORIES, Probe, ProbedProxy, ProbeError, symbolic_builtins
from leenet_fx.graph.proxies import READ_VALUES, Proxy, TensorProxy
from leenet_fx.graph.shape_queries import hoist_shape_queries
from leenet_fx.graph.signature import take_images_only

logger = logging.getLogger("leenet_fx")

CONSTANT = "_tensor_constant"
"""Prefix of the names that torch.fx gives to constants."""


@dataclass(frozen=True)
class Trace:
    """A model as a graph.

    Attributes:
        root: a copy of the model's module tree; the graph's targets are names in it.
        graph: one placeholder (the images) to one output (the logits).
        logits: the node that computes the logits; until `outputs.select_logits`, the output node.
        name: the model's class name.
        tracer: "fx" (torch.fx) or "export" (torch.export, for evaluation mode and one image size
            only).
        images_name: name of the argument of `forward` that takes the images.
        returns_mapping: whether `forward` returns the logits by name, among others.
    """

    root: nn.Module
    graph: fx.Graph
    logits: fx.Node
    name: str
    tracer: Literal["fx", "export"] = "fx"
    images_name: str | None = None
    returns_mapping: bool = False


def trace(
    root: nn.Module,
    *,
    leaf_modules: Iterable[type[nn.Module]] = (),
    concrete_args: Mapping[str, Any] | None = None,
    probe: Probe | None = None,
) -> Trace:
    """Trace a module tree with torch.fx.

    The images are the only argument: others have the value of `concrete_args` or their default.
    Parameters and buffers are read by name, so that the graph follows `.to()` and
    `load_state_dict`. `self.training` as an argument of an operator stays symbolic. A module that
    branches on it becomes a leaf and keeps both behaviours, unless it holds most of the network:
    then it is traced in evaluation mode, with a warning if training mode gives another graph.

    Args:
        root: the module tree; constants become buffers of it.
        leaf_modules: classes to keep whole.
        concrete_args: values of the arguments of `forward` other than the images, by name.
        probe: values for images of one size, by which control flow on shapes is decided; None
            rejects such control flow.

    Raises:
        ProbeError: an operator does not take the values of the probe.
        TraceError: the model cannot be traced; names the module, the source line and a remedy.
    """
    name = type(root).__name__
    leaves = tuple(leaf_modules)
    large = _large_modules(root)
    mode_readers: set[str] = set()
    while True:
        scratch, tracer, graph = _trace_once(root, leaves, mode_readers, concrete_args, probe=probe)
        new_leaves = (tracer.branched_on_mode | tracer.contexts.autocasts) - large - mode_readers
        if not new_leaves:
            break
        mode_readers |= new_leaves
    tracer.contexts.check(name)
    differing = tracer.branched_on_mode & large
    if differing and _same_in_training(root, graph, leaves, mode_readers, concrete_args):
        differing = set()
    for path in sorted(differing):
        where = f"module '{path}'" if path else name
        logger.warning(
            "%s branches on self.training in its forward: parts that run in training mode only, "
            "such as auxiliary heads, are dropped.",
            where,
        )
    for key, value in scratch.__dict__.items():
        if key.startswith(CONSTANT):
            root.register_buffer(key, value, persistent=False)
    _register_plain_tensors(root, graph)
    follow_device(graph)
    detach_without_grad(graph, tracer.contexts.without_grad)
    hoist_shape_queries(graph, decisions=probe is not None)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return Trace(root, graph, output, name)


def _trace_once(
    root: nn.Module,
    leaves: tuple[type[nn.Module], ...],
    leaf_paths: Iterable[str],
    concrete_args: Mapping[str, Any] | None,
    as_training: bool = False,
    probe: Probe | None = None,
) -> tuple[nn.Module, _Tracer, fx.Graph]:
    # Some models cache values computed while tracing, so each trace gets its own copy.
    scratch = clone(root, "share")
    take_images_only(scratch, concrete_args)
    run_layer_by_layer(scratch)
    tracer = _Tracer(leaves, frozenset(leaf_paths), as_training, probe)
    try:
        return scratch, tracer, tracer.run(scratch)
    except ProbeError:
        raise
    except Exception as error:
        raise _explain(type(root).__name__, tracer, error) from error


def _same_in_training(
    root: nn.Module,
    graph: fx.Graph,
    leaves: tuple[type[nn.Module], ...],
    leaf_paths: Iterable[str],
    concrete_args: Mapping[str, Any] | None,
) -> bool:
    """Return whether training mode leads to the same graph, whatever random numbers are drawn."""
    states = torch.get_rng_state(), random.getstate()
    try:
        other = _trace_once(root, leaves, leaf_paths, concrete_args, as_training=True)[2]
        drew = not torch.equal(torch.get_rng_state(), states[0]) or random.getstate() != states[1]
    except TraceError:
        return False
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    if drew:
        return False
    return [n.format_node() for n in graph.nodes] == [n.format_node() for n in other.nodes]


class _Tracer(fx.Tracer):
    """Keeps `self.training` symbolic, and timm's and the user's leaf modules whole."""

    def __init__(
        self,
        leaves: tuple[type[nn.Module], ...],
        leaf_paths: frozenset[str],
        as_training: bool,
        probe: Probe | None = None,
    ) -> None:
        from timm.layers import get_notrace_functions, get_notrace_modules

        super().__init__(
            autowrap_modules=(math, torchvision.ops),  # type: ignore[arg-type]
            autowrap_functions=(
                *get_notrace_functions(),
                *(FACTORIES if probe is not None else ()),
            ),
        )
        self.probe = probe
        if probe is not None:
            probe.clear()
            self._autowrap_search.append(torch)
        self._leaf_classes = (*leaves, *get_notrace_modules())
        self._leaf_paths = leaf_paths
        self._as_training = as_training
        self._flags: dict[fx.Node, str] = {}
        self.branched_on_mode: set[str] = set()
        self.contexts = Contexts()

    def run(self, root: nn.Module) -> fx.Graph:
        modes = {module: module.training for module in root.modules()}
        self._names = {id(t): name for name, t in root.named_buffers()}
        self._names |= {id(t): name for name, t in root.named_parameters()}
        try:
            with ExitStack() as stack:
                stack.enter_context(self.contexts.record(self._current_path))
                if self.probe is not None:
                    stack.enter_context(symbolic_builtins(root))
                graph = self.trace(root)
        finally:
            for module, mode in modes.items():
                module.__dict__["training"] = mode
        for node in graph.nodes:
            if node.target in FACTORIES:
                # Generated code would try to wrap the name "torch.arange".
                node.meta.pop("is_wrapped", None)
        for flag in self._flags:
            if flag.users:
                min(flag.users).prepend(flag)
            else:
                graph.erase_node(flag)
        return graph

    def _current_path(self) -> str:
        stack = list(self.module_stack.values())
        return str(stack[-1][0]) if stack else ""

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        for path, module in self.root.named_modules():
            target = f"{path}.training" if path else "training"
            flag = self.create_proxy("get_attr", target, (), {})
            self._flags[flag.node] = path
            module.__dict__["training"] = flag
        return arguments

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self._leaf_paths
            or isinstance(m, self._leaf_classes)
            or (not runs_layer_by_layer(m) and super().is_leaf_module(m, module_qualified_name))
        )

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind in ("call_method", "call_function") and name in READ_VALUES:
            raise ValueError(f"'{name}' makes the graph depend on the values of a tensor")
        node = super().create_node(kind, target, *args, **kwargs)
        self.contexts.add(node)
        if self.probe is not None and kind != "output":
            self.probe.evaluate(node, self.root)
        return node

    def create_arg(self, a: Any) -> Any:
        # Proxies with a known value are instances of its type too.
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._is_probing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    @property
    def _is_probing(self) -> bool:
        return self.probe is not None and self.probe.is_running

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self) if self.probe is None else ProbedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if obj.node in self._flags:
            self.branched_on_mode.add(self._flags[obj.node])
            return self._as_training
        if self.probe is not None:
            return bool(self.probe.decide(obj))
        return super().to_bool(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        name = self._names.get(id(attr_val)) if isinstance(attr_val, torch.Tensor) else None
        if name is None or self._is_probing:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr",
                name,
                (),
                {},
                proxy_factory_fn=lambda node: TensorProxy(node, self, attr_val),
            )
        return parameter_proxy_cache[name]


def _register_plain_tensors(root: nn.Module, graph: fx.Graph) -> None:
    """Register tensor attributes that the graph reads as buffers, so that they follow `.to()`."""
    for node in graph.nodes:
        if node.op != "get_attr":
            continue
        path, _, attribute = str(node.target).rpartition(".")
        owner = root.get_submodule(path)
        if isinstance(owner.__dict__.get(attribute), torch.Tensor):
            tensor = owner.__dict__.pop(attribute)
            owner.register_buffer(attribute, tensor, persistent=False)


def _large_modules(root: nn.Module) -> set[str]:
    """Return the paths of modules with more than half of the parameters."""
    total = sum(p.numel() for p in root.parameters())
    return {
        path
        for path, module in root.named_modules()
        if not path or 2 * sum(p.numel() for p in module.parameters()) > total
    }


def _explain(name: str, tracer: _Tracer, error: Exception) -> TraceError:
    stack = list(getattr(tracer, "module_stack", {}).values())
    where = f"module '{stack[-1][0]}' ({stack[-1][1].__name__})" if stack else "its forward"
    torch_dir = str(Path(torch.__file__).parent)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_dir, "<", str(Path(__file__).parent)))
    ]
    line = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    reason = first_line(error)
    return TraceError(
        f"{name} cannot be traced: {where}{line}: {reason}. If the module's control flow depends "
        "on the shape of its input only, add its class to leaf_modules=(…,) to keep it whole; if "
        "on another argument, pass its value in concrete_args={…}; if on values of the images, a "
        "graph would be wrong for other images."
    )
