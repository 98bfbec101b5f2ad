"""One ONNX model from the models of the stages: nested conditions on the remaining samples.

After each exit, the rows of the samples that stay are found, and `If` there are any, the tensors at
the cut are gathered, the next stage runs, and its results are scattered over the exit's. Each
initializer is in the one branch that reads it: ONNX Runtime does not optimise reads from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leenet_fx.export.live_values import TensorSpec
from leenet_fx.export.stage_modules import ALPHA, CONFIDENCE, IMAGES, LOGITS, ExportPlan

if TYPE_CHECKING:
    import onnx

THRESHOLDS, EXIT_INDEX = "thresholds", "exit_index"


def nest(
    models: Sequence[onnx.ModelProto], plan: ExportPlan, *, takes_none: bool = True
) -> onnx.ModelProto:
    """Compose the models of the stages into one.

    Its inputs are `images` (B, …), `thresholds` (N,) on the policy's scale, and `alpha` if gates
    are conditioned on it; the latter two may be left out, and are then the active ones. Its outputs
    are `logits` (B, classes), `exit_index` (B,) int64, and `confidence` (B,), the largest class
    probability.

    Args:
        models: one for each stage, with the names of its tensors.
        plan: the network.
        takes_none: whether a batch of no images is answered by a condition of its own: some kernels
            of ONNX Runtime end the process on one. OpenVINO cannot infer shapes behind it.
    """
    from onnx import TensorProto, helper, numpy_helper

    stages, decision = plan.stages, plan.decision
    graph = _Nested(models, plan).whole(takes_none)
    batch = "batch"
    classes = stages[-1].outputs[0].shape[1]
    shape = [batch if size is None else size for size in stages[0].inputs[0].shape]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, shape))
    if decision.enabled:
        values = np.asarray(decision.thresholds, np.float32)
        graph.input.append(
            helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, values.shape)
        )
        graph.initializer.append(numpy_helper.from_array(values, THRESHOLDS))
    if decision.alpha is not None:
        graph.input.append(helper.make_tensor_value_info(ALPHA, TensorProto.FLOAT, ()))
        value = np.asarray(decision.alpha, np.float32)
        graph.initializer.append(numpy_helper.from_array(value, ALPHA))
    graph.output.extend(
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, (batch, classes)),
            helper.make_tensor_value_info(EXIT_INDEX, TensorProto.INT64, (batch,)),
            helper.make_tensor_value_info(CONFIDENCE, TensorProto.FLOAT, (batch,)),
        ]
    )
    opsets = {entry.domain: entry.version for model in models for entry in model.opset_import}
    return helper.make_model(
        graph,
        producer_name="leenet-fx",
        ir_version=max(model.ir_version for model in models),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
    )


class _Graph:
    """Nodes and initializers of one graph or branch."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        from onnx import helper

        output = f"{self.prefix}{name}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        """Append an initializer."""
        from onnx import numpy_helper

        output = f"{self.prefix}{name}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), output))
        return output


class _Nested:
    def __init__(self, models: Sequence[onnx.ModelProto], plan: ExportPlan) -> None:
        self.models = models
        self.stages = plan.stages
        self.sign = plan.decision.sign
        self.temperatures = plan.decision.temperatures
        self.num_exits = plan.num_exits

    def whole(self, takes_none: bool) -> onnx.GraphProto:
        """Return the graph, without its inputs and outputs."""
        from onnx import helper

        graph = _Graph("")
        if takes_none:
            logits, exits = self._if_any(graph)
        else:
            logits, exits = self._stage(graph, 0, {IMAGES: IMAGES, ALPHA: ALPHA})
        graph.node("Identity", logits, name=LOGITS)
        graph.node("Identity", exits, name=EXIT_INDEX)
        divided = logits
        if self.temperatures is not None:
            values = graph.constant("temperatures", self.temperatures, np.float32)
            taken = graph.node("Gather", values, exits, name="temperature")
            axis = graph.constant("temperature_axis", [1])
            column = graph.node("Unsqueeze", taken, axis, name="temperature_column")
            divided = graph.node("Div", logits, column, name="divided")
        probabilities = graph.node("Softmax", divided, name="probabilities", axis=1)
        axis = graph.constant("class_axis", [1])
        graph.node("ReduceMax", probabilities, axis, name=CONFIDENCE, keepdims=0)
        return helper.make_graph(graph.nodes, "leenet_fx", [], [], graph.initializers)

    def _if_any(self, graph: _Graph) -> tuple[str, str]:
        """Append all stages, under the condition that there are images."""
        size = graph.node("Shape", IMAGES, name="batch_size", start=0, end=1)
        some = graph.node("Greater", size, graph.constant("no_images", [0]), name="some_images")
        scalar = graph.node("Squeeze", some, graph.constant("size_axis", [0]), name="any_images")
        everything = _Graph("all/")
        names = self._stage(everything, 0, {IMAGES: IMAGES, ALPHA: ALPHA})
        nothing = _Graph("empty/")
        classes = self.stages[-1].outputs[0].shape[1]
        assert classes is not None
        logits = nothing.constant("no_logits", np.empty((0, classes)), np.float32)
        exits = nothing.constant("no_exits", np.empty(0), np.int64)
        return self._if(
            graph,
            scalar,
            self._branch(everything, *names),
            self._nothing(nothing, logits, exits),
        )

    def _stage(self, graph: _Graph, index: int, inputs: dict[str, str]) -> tuple[str, str]:
        """Append a stage and all later ones; returns the names of logits and exits."""
        names = _append_model(graph, self.models[index], inputs, f"stage{index}/")
        is_last = index == len(self.stages) - 1
        logits = names[LOGITS]
        shape = graph.node("Shape", logits, name="count", start=0, end=1)
        number = self.num_exits if is_last else index
        own = graph.node("Expand", graph.constant("exit", number), shape, name="own_exit")
        if is_last:
            return logits, own
        threshold = graph.node(
            "Gather", THRESHOLDS, graph.constant("index", index), name="threshold", axis=0
        )
        if self.sign < 0:
            threshold = graph.node("Neg", threshold, name="bound")
        exits = graph.node("GreaterOrEqual", names[CONFIDENCE], threshold, name="exits")
        stays = graph.node("Not", exits, name="stays")
        found = graph.node("NonZero", stays, name="found")
        rows = graph.node("Squeeze", found, graph.constant("first", [0]), name="rows")
        size = graph.node("Size", rows, name="num_rows")
        any_stays = graph.node("Greater", size, graph.constant("zero", 0), name="any_stays")
        then = self._rest(_Graph(f"{graph.prefix}rest/"), index, names, rows, logits, own)
        otherwise = self._nothing(_Graph(f"{graph.prefix}none/"), logits, own)
        return self._if(graph, any_stays, then, otherwise)

    def _rest(
        self, graph: _Graph, index: int, names: dict[str, str], rows: str, logits: str, own: str
    ) -> onnx.GraphProto:
        """Return the branch that runs the later stages on the remaining samples."""
        inputs = {
            spec.name: _select(graph, spec, names[spec.name], rows)
            for spec in self.stages[index].passed
        }
        later, exits = self._stage(graph, index + 1, {**inputs, ALPHA: ALPHA})
        places = graph.node("Unsqueeze", rows, graph.constant("last", [1]), name="places")
        merged = graph.node("ScatterND", logits, places, later, name="merged_logits")
        merged_exits = graph.node("ScatterND", own, places, exits, name="merged_exits")
        return self._branch(graph, merged, merged_exits)

    def _nothing(self, graph: _Graph, logits: str, own: str) -> onnx.GraphProto:
        """Return the branch in which no later stage runs."""
        return self._branch(
            graph,
            graph.node("Identity", logits, name="same_logits"),
            graph.node("Identity", own, name="same_exits"),
        )

    def _branch(self, graph: _Graph, logits: str, exits: str) -> onnx.GraphProto:
        from onnx import TensorProto, helper

        classes = self.stages[-1].outputs[0].shape[1]
        outputs = [
            helper.make_tensor_value_info(logits, TensorProto.FLOAT, (None, classes)),
            helper.make_tensor_value_info(exits, TensorProto.INT64, (None,)),
        ]
        name = graph.prefix.rstrip("/")
        return helper.make_graph(graph.nodes, name, [], outputs, graph.initializers)

    def _if(
        self, graph: _Graph, condition: str, then: onnx.GraphProto, otherwise: onnx.GraphProto
    ) -> tuple[str, str]:
        from onnx import helper

        outputs = (f"{graph.prefix}all_logits", f"{graph.prefix}all_exits")
        graph.nodes.append(
            helper.make_node(
                "If",
                [condition],
                outputs,
                name=f"{graph.prefix}if",
                then_branch=then,
                else_branch=otherwise,
            )
        )
        return outputs


def _select(graph: _Graph, spec: TensorSpec, value: str, rows: str) -> str:
    """Return the name of the remaining samples' part of a tensor."""
    if spec.batch_axis is None:
        return value
    return graph.node("Gather", value, rows, name=f"remaining_{spec.name}", axis=spec.batch_axis)


def _append_model(
    graph: _Graph, model: onnx.ModelProto, inputs: dict[str, str], prefix: str
) -> dict[str, str]:
    """Append a model's nodes and initializers under a prefix.

    Args:
        graph: receives them.
        model: of a stage.
        inputs: names in `graph` of the model's inputs.
        prefix: of all other names.

    Returns:
        Names in `graph` of the model's outputs.
    """
    names = {value.name: inputs[value.name] for value in model.graph.input}
    outputs = {}
    for value in model.graph.output:
        # An output that is an input would be renamed like it, which is right: it is the same value.
        outputs[value.name] = names.get(value.name, f"{prefix}{value.name}")
    rename = _renamer(names, prefix)
    for tensor in model.graph.initializer:
        copied = type(tensor)()
        copied.CopyFrom(tensor)
        copied.name = rename(tensor.name)
        graph.initializers.append(copied)
    _append_nodes(model.graph.node, graph.nodes, rename)
    return outputs


def _renamer(names: dict[str, str], prefix: str) -> Callable[[str], str]:
    def rename(name: str) -> str:
        return names.get(name, f"{prefix}{name}") if name else name

    return rename


def _append_nodes(
    nodes: Sequence[onnx.NodeProto], target: list[onnx.NodeProto], rename: Callable[[str], str]
) -> None:
    for node in nodes:
        copied = type(node)()
        copied.CopyFrom(node)
        _rename_node(copied, rename)
        target.append(copied)


def _rename_node(node: onnx.NodeProto, rename: Callable[[str], str]) -> None:
    node.name = rename(node.name)
    node.input[:] = [rename(name) for name in node.input]
    node.output[:] = [rename(name) for name in node.output]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
                value.name = rename(value.name)
            for inner in graph.node:
                _rename_node(inner, rename)
