"""The stages of a network as ONNX models, one each, without what exporters add for debugging."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from leenet_fx.errors import ExportError, first_line
from leenet_fx.export.stage_modules import ExportPlan, StageModule

if TYPE_CHECKING:
    import onnx


def stage_models(plan: ExportPlan) -> list[onnx.ModelProto]:
    """Return one ONNX model for each stage, with the names of its tensors and a symbolic batch.

    Args:
        plan: the network.

    Raises:
        ExportError: an operation of a stage is not available in ONNX.
    """
    with _one_registry():
        return [
            stage_model(stage, example)
            for stage, example in zip(plan.stages, plan.examples, strict=True)
        ]


def stage_model(stage: StageModule, example: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """Return a stage as an ONNX model.

    Args:
        stage: the stage.
        example: its inputs.

    Raises:
        ExportError: an operation is not available in ONNX.
    """
    batch = torch.export.Dim("batch")
    axes = [None if s.batch_axis is None else {s.batch_axis: batch} for s in stage.inputs]
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                stage,
                example,
                dynamo=True,
                dynamic_shapes=(tuple(axes),),
                input_names=[spec.name for spec in stage.inputs],
                output_names=[spec.name for spec in stage.outputs],
                verbose=False,
            )
    except Exception as error:
        # The exporter raises errors of any kind.
        raise ExportError(
            f"Stage {stage.index} cannot be written as ONNX: {first_line(_cause(error))}"
        ) from error
    assert program is not None
    model = program.model_proto
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    strip(model)
    _check_interface(stage, model)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove metadata and documentation of graphs, nodes and tensors; names remain."""
    del model.metadata_props[:]
    model.doc_string = ""
    _strip_graph(model.graph)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of exporters, which concern their own development."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _one_registry() -> Iterator[None]:
    """Let the exporter build its registry of operators once, not for each stage: a second each.

    Fallback, if torch has no such class: it is built for each stage.
    """
    try:
        module = importlib.import_module("torch.onnx._internal.exporter._registration")
        registry: Any = module.ONNXRegistry
        original, build = registry.__dict__["from_torchlib"], registry.from_torchlib
    except (ImportError, AttributeError, KeyError):
        yield
        return
    built: dict[Any, Any] = {}

    def build_once(*args: Any, **options: Any) -> Any:
        key = (args, tuple(sorted(options.items())))
        if key not in built:
            built[key] = build(*args, **options)
        return built[key]

    try:
        registry.from_torchlib = staticmethod(build_once)
        yield
    finally:
        registry.from_torchlib = original


def _strip_graph(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    # Shapes of intermediate values take as much room as the nodes, and runtimes infer them.
    del graph.value_info[:]
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.node):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            attribute.doc_string = ""
            for subgraph in (
                *attribute.graphs,
                *([attribute.g] if attribute.HasField("g") else []),
            ):
                _strip_graph(subgraph)


def _check_interface(stage: StageModule, model: onnx.ModelProto) -> None:
    """Raise ExportError if inputs or outputs are not those of the stage, in order."""
    for kind, specs, values in (
        ("inputs", stage.inputs, model.graph.input),
        ("outputs", stage.outputs, model.graph.output),
    ):
        expected, found = [spec.name for spec in specs], [value.name for value in values]
        if expected != found:
            raise ExportError(f"Stage {stage.index} has {kind} {found}, expected {expected}.")


def _cause(error: BaseException) -> Exception:
    """Return the first error of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, Exception)
    return error
