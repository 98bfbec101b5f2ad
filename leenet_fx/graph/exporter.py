"""Tracing with torch.export, converted to the form of a torch.fx trace."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.fx.node import map_aggregate

from leenet_fx.errors import TraceError, first_line
from leenet_fx.graph.batch_dim import PROBE_BATCH_SIZES
from leenet_fx.graph.cloning import clone
from leenet_fx.graph.shape_queries import hoist_shape_queries
from leenet_fx.graph.signature import replace_forward, take_images_only
from leenet_fx.graph.tracer import CONSTANT, Trace


def export(
    root: nn.Module,
    image_shape: tuple[int, ...],
    dtype: torch.dtype,
    *,
    concrete_args: Mapping[str, Any] | None = None,
) -> Trace:
    """Trace a module tree with torch.export, for any batch size and one image size.

    Shapes are concrete while the model runs, so control flow may depend on them. The graph is that
    of evaluation mode: dropout and stochastic depth are disabled, and BatchNorm uses its running
    statistics.

    Args:
        root: the module tree; constants become buffers of it.
        image_shape: shape of one image, without the batch axis.
        dtype: dtype of the images.
        concrete_args: values of the arguments of `forward` other than the images, by name.

    Raises:
        TraceError: control flow depends on the values of the images or on the batch size.
    """
    name = type(root).__name__
    scratch = clone(root, "share").eval()
    take_images_only(scratch, concrete_args)
    structure = _return_tensors(scratch)
    tensors = (*root.parameters(), *root.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    images = torch.empty(PROBE_BATCH_SIZES[1], *image_shape, dtype=dtype, device=device)
    try:
        with _silence(), torch.no_grad():
            program = torch.export.export(
                scratch, (images,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False
            )
            exported = program.module()
    except Exception as error:
        raise TraceError(f"torch.export cannot capture {name}: {first_line(error)}") from error
    graph = _plain_graph(exported, root, structure)
    hoist_shape_queries(graph)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return Trace(root, graph, output, name, tracer="export")


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings and logs: where it fails, torch.export logs the whole graph."""
    level = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            yield
    finally:
        logging.disable(level)


def _return_tensors(scratch: nn.Module) -> list[Any]:
    """Let a model return a flat tuple of tensors, which torch.export supports.

    Returns:
        A list whose only item, once the model has run, is its output with the positions of the
        tensors in their place.
    """
    forward = scratch.forward
    structure: list[Any] = []

    def flat(self: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors: list[torch.Tensor] = []

        def position(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: position(item) for name, item in value.items()}
            if isinstance(value, tuple):
                return tuple(map(position, value))
            if not isinstance(value, torch.Tensor):
                return None
            tensors.append(value)
            return len(tensors) - 1

        structure[:] = [position(forward(images))]
        return tuple(tensors)

    replace_forward(scratch, flat)
    return structure


def _plain_graph(exported: fx.GraphModule, root: nn.Module, structure: list[Any]) -> fx.Graph:
    """Copy an exported graph without guards; move its constants and nested graphs to `root`."""
    modules = dict(root.named_modules(remove_duplicate=False))
    graph = fx.Graph()
    device: fx.Node | None = None
    copies: dict[fx.Node, fx.Node] = {}
    for node in exported.graph.nodes:
        if _is_check(node):
            continue
        if node.op == "output":
            returned = [copies[value] for value in node.args[0]]
            graph.output(map_aggregate(structure[0], partial(_item, returned)))
            continue
        target = node.target
        if node.op == "get_attr":
            target = _move_constant(exported, root, str(target))
            name = target.replace(".", "_")
        else:
            name = node.name
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        # The device is fixed at export: read it from the images instead.
        args, kwargs = map_aggregate((args, kwargs), partial(_replace_device, device))
        copied = graph.create_node(node.op, target, args, kwargs, name=name)
        copied.meta["nn_module_stack"] = _stack(node, modules)
        copies[node] = copied
        if node.op == "placeholder":
            device = graph.call_function(getattr, (copied, "device"))
    graph.eliminate_dead_code()
    return graph


def _item(values: list[fx.Node], position: Any) -> fx.Node | None:
    return None if position is None else values[position]


def _replace_device(device: fx.Node | None, value: Any) -> Any:
    return device if isinstance(value, torch.device) else value


def _is_check(node: fx.Node) -> bool:
    """Return whether a node is a guard on the input shape, which a batch of one would fail."""
    if node.op == "call_module":
        return True
    return node.op == "call_function" and "assert" in str(node.target)


def _move_constant(exported: fx.GraphModule, root: nn.Module, target: str) -> str:
    """Return the name in `root` of a target of an exported graph; add it where `root` lacks it."""
    path, _, attribute = target.rpartition(".")
    try:
        if hasattr(root.get_submodule(path), attribute):
            return target
    except AttributeError:
        pass
    value = getattr(exported.get_submodule(path), attribute)
    name = CONSTANT + target.replace(".", "_")
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    else:
        root.register_buffer(name, value, persistent=False)
    return name


def _stack(node: fx.Node, modules: Mapping[str, nn.Module]) -> dict[str, tuple[str, type]]:
    """Return the modules a node was called in, in the form of torch.fx: call → (path, class)."""
    stack: dict[str, tuple[str, type]] = {}
    for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
        # Some of the paths that torch.export records are not modules.
        if path and path in modules:
            call = key.partition("@")[2]
            name = f"{path}@{call}" if call else path
            stack[name] = (path, type(modules[path]))
    return stack
