"""Values of a trace on the meta device, from which shapes are known while a model is traced.

Control flow on shapes is followed with the values that the images of one size lead to, and each
decision becomes a node that raises an error for images that lead to another.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from leenet_fx.errors import InputError
from leenet_fx.graph.batch_dim import PROBE_BATCH_SIZES
from leenet_fx.graph.devices import as_device
from leenet_fx.graph.proxies import Proxy

FACTORIES = (
    *(torch.arange, torch.linspace, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye),
    *(torch.rand, torch.randn),
)
"""Functions that torch.fx does not record when their sizes are symbolic."""


class ProbeError(Exception):
    """An operator of the model has failed on images of the probed shape."""


def check_decision(found: Any, expected: Any) -> None:
    """Raise InputError if a value on which the graph depends is not that of the traced images.

    Args:
        found: the value for these images.
        expected: the value while the model was traced.
    """
    if found != expected:
        raise InputError(
            "The control flow of the model depends on the size or type of the images, and these "
            f"images take another path (found {found}, traced with {expected}): attach with "
            "example_inputs of this size and type."
        )


class Probe:
    """The values of the nodes of a trace, for two batch sizes.

    Attributes:
        is_running: whether an operator is being evaluated, so that nothing is recorded.
    """

    def __init__(self, meta: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._meta = meta
        self._image_shape = image_shape
        self._dtype = dtype
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self._ranks: set[fx.Node] = set()
        self._checked: set[fx.Node] = set()
        self.is_running = False

    def clear(self) -> None:
        """Forget the values of a former trace."""
        self._values.clear()
        self._ranks.clear()
        self._checked.clear()

    def __getitem__(self, node: fx.Node) -> Any:
        """Return the value of a node at the smaller batch size."""
        return self._values[node][0]

    def evaluate(self, node: fx.Node, root: nn.Module) -> None:
        """Compute the value of a new node.

        Args:
            node: the node.
            root: the module tree that is traced, which holds constants.

        Raises:
            ProbeError: the operator does not take these values.
        """
        self.is_running = True
        try:
            with torch.device("meta"), torch.no_grad():
                self._values[node] = tuple(
                    self._evaluate(node, root, i) for i in range(len(PROBE_BATCH_SIZES))
                )
        except Exception as error:
            raise ProbeError(f"{type(error).__name__}: {error}") from error
        finally:
            self.is_running = False
        if _is_rank(node) or (
            node.op == "call_function" and self._ranks.issuperset(node.all_input_nodes)
        ):
            self._ranks.add(node)

    def _evaluate(self, node: fx.Node, root: nn.Module, index: int) -> Any:
        if node.op == "placeholder":
            return torch.empty(PROBE_BATCH_SIZES[index], *self._image_shape, dtype=self._dtype)
        target = str(node.target)
        if node.op == "get_attr":
            return self._attribute(target, root)
        args = fx.map_arg(node.args, lambda n: self._values[n][index])
        kwargs = fx.map_arg(node.kwargs, lambda n: self._values[n][index])
        args, kwargs = map_aggregate((args, kwargs), _on_meta)
        if target == "to" and as_device(args[1] if len(args) > 1 else None) is not None:
            args = (args[0], "meta", *args[2:])
        if as_device(kwargs.get("device")) is not None:
            kwargs = {**kwargs, "device": "meta"}
        if node.op == "call_module":
            return self._meta.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)

    def _attribute(self, target: str, root: nn.Module) -> Any:
        path, _, name = target.rpartition(".")
        if name == "training":
            return False
        try:
            return getattr(self._meta.get_submodule(path), name)
        except AttributeError:
            value = getattr(root.get_submodule(path), name)
            return value.to("meta") if isinstance(value, torch.Tensor) else value

    def decide(self, proxy: fx.Proxy) -> Any:
        """Return the value of a proxy on which control flow depends; record the decision.

        Raises:
            ValueError: it is a tensor, or depends on the batch size.
        """
        small, large = self._values[proxy.node]
        if isinstance(small, torch.Tensor):
            raise ValueError("control flow depends on the values of a tensor")
        if type(small) is not type(large) or small != large:
            raise ValueError("control flow depends on the batch size")
        if proxy.node not in self._checked and proxy.node not in self._ranks:
            self._checked.add(proxy.node)
            proxy.tracer.create_proxy("call_function", check_decision, (proxy, small), {})
        return small


def _is_rank(node: fx.Node) -> bool:
    """Return whether a node is the number of axes of a tensor."""
    if node.op == "call_method":
        return node.target in ("dim", "ndimension")
    return node.target is getattr and bool(node.args[1] == "ndim")


def _on_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


class ProbedProxy(Proxy):
    """A proxy with a known shape or value: it can be counted, iterated, and decide."""

    def _probe(self) -> Probe:
        probe: Probe = self.tracer.probe  # type: ignore[attr-defined]
        return probe

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Type of the value, for isinstance."""
        try:
            value = self._probe()[self.node]
        except (AttributeError, KeyError):
            return ProbedProxy
        return torch.Tensor if isinstance(value, torch.Tensor) else type(value)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._probe()[self.node], name)
        if callable(value):
            return partial(self._call, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def __bool__(self) -> bool:
        return bool(self.tracer.to_bool(self))

    def __index__(self) -> int:
        return int(self._probe().decide(self))

    def __int__(self) -> int:
        return int(self._probe().decide(self))

    def __float__(self) -> float:
        return float(self._probe().decide(self))

    def __len__(self) -> int:
        value = self._probe()[self.node]
        if isinstance(value, torch.Tensor):
            return int(self._probe().decide(self.shape[0]))
        return len(value)

    def __iter__(self) -> Iterator[Any]:
        symbolic: Any = self
        return iter([symbolic[i] for i in range(len(self))])

    def __contains__(self, item: object) -> bool:
        return item in self._probe().decide(self)


class _IntType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is ProbedProxy:
            return args[0].tracer.create_proxy("call_function", int, args, {})
        return int(*args, **kwargs)


class _Int(metaclass=_IntType):
    """`int` that keeps symbolic values."""


def _symbolic_len(value: Any) -> Any:
    # A proxy of a tensor is an instance of both.
    symbolic: Any = value
    if type(value) is ProbedProxy and symbolic.__class__ is torch.Tensor:
        return symbolic.shape[0]
    return len(value)


@contextmanager
def symbolic_builtins(root: nn.Module) -> Iterator[None]:
    """Let `len` and `int` return symbolic values in the modules of Python that define a network.

    Args:
        root: the network; torch's own classes are left as they are.
    """
    replaced: list[tuple[dict[str, Any], str]] = []
    namespaces: dict[int, dict[str, Any]] = {}
    for cls in {base for module in root.modules() for base in type(module).__mro__}:
        if cls.__module__.partition(".")[0] not in ("torch", "builtins", "leenet_fx"):
            forward: Callable[..., Any] | None = cls.__dict__.get("forward")
            names = getattr(getattr(forward, "__wrapped__", forward), "__globals__", None)
            if names is not None:
                namespaces[id(names)] = names
    try:
        for names in namespaces.values():
            for name, symbolic in (("len", _symbolic_len), ("int", _Int)):
                if name not in names and hasattr(builtins, name):
                    names[name] = symbolic
                    replaced.append((names, name))
        yield
    finally:
        for names, name in replaced:
            del names[name]
