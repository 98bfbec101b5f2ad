"""Stages in 8-bit integers: static quantization of each by itself, calibrated on images.

ONNX Runtime's static quantization leaves the branches of `If` as they are, so each stage is
quantized before the stages are composed. Its ranges are those of the tensors that the float stages
before it pass on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leenet_fx.errors import ExportError, first_line
from leenet_fx.export.onnx_stages import quiet, strip
from leenet_fx.export.stage_modules import ALPHA, CONFIDENCE, LOGITS, ExportPlan
from leenet_fx.policies import Policy, ThresholdPolicy

if TYPE_CHECKING:
    import onnx

CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class QuantizationReport:
    """A network before and after quantization, on images that ranges were not calibrated on.

    Attributes:
        num_calibrated: number of images for the ranges.
        num_compared: number of images for the rest.
        agreement: share of images with the same predicted class.
        same_exit: share of images with the same exit.
        exit_shares_before: N+1 shares of images.
        exit_shares_after: N+1 shares.
        accuracy_before: share of right predictions, if labels are known.
        accuracy_after: likewise.
    """

    num_calibrated: int
    num_compared: int
    agreement: float
    same_exit: float
    exit_shares_before: tuple[float, ...]
    exit_shares_after: tuple[float, ...]
    accuracy_before: float | None
    accuracy_after: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def quantize_stages(
    plan: ExportPlan, models: Sequence[onnx.ModelProto], images: Tensor
) -> list[onnx.ModelProto]:
    """Return the stages with weights and activations in 8-bit integers, weights per channel.

    Args:
        plan: the network.
        models: of its stages, in float32.
        images: (n, …) to calibrate ranges on, n ≥ 1.

    Raises:
        ExportError: ONNX Runtime cannot quantize a stage.
    """
    batches = _stage_inputs(plan, images)
    return [
        _quantized(index, model, [inputs[index] for inputs in batches])
        for index, model in enumerate(models)
    ]


def _stage_inputs(plan: ExportPlan, images: Tensor) -> list[list[dict[str, Any]]]:
    """Return the inputs of each stage, by name, for each batch of images."""
    found = []
    with torch.no_grad():
        for batch in images.split(CALIBRATION_BATCH):
            tensors: tuple[Tensor, ...] = (batch,)
            inputs = []
            for stage in plan.stages:
                reads_alpha = stage.inputs[-1].name == ALPHA
                alpha = (torch.tensor(plan.decision.alpha),) if reads_alpha else ()
                names = [spec.name for spec in stage.inputs]
                arrays = [tensor.numpy() for tensor in (*tensors, *alpha)]
                inputs.append(dict(zip(names, arrays, strict=True)))
                tensors = stage(*tensors, *alpha)[2:]
            found.append(inputs)
    return found


def _quantized(
    index: int, model: onnx.ModelProto, batches: Sequence[dict[str, Any]]
) -> onnx.ModelProto:
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Any]] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    level = logging.root.level
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "stage.onnx"
        try:
            # It recommends its preprocessing on the root logger; the exporter has done the like.
            logging.root.setLevel(logging.ERROR)
            quantization.quantize_static(
                model,
                path,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                # CPUs without VNNI have fast kernels for unsigned activations only, whose sums would
                # overflow with weights of all 8 bits.
                activation_type=quantization.QuantType.QUInt8,
                reduce_range=True,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_decision_nodes(model),
                # In 8 bits, confidences of many samples would be equal.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
        except Exception as error:
            # It raises errors of any kind.
            raise ExportError(
                f"ONNX Runtime cannot quantize stage {index}: {first_line(error)}"
            ) from error
        finally:
            logging.root.setLevel(level)
        quantized = onnx.load(path)
    strip(quantized)
    return quantized


def _decision_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that only the confidence depends on: they stay in float32."""
    read_by_others: set[str] = {v.name for v in model.graph.output if v.name != CONFIDENCE}
    excluded = []
    for node in reversed(model.graph.node):
        if read_by_others.intersection(node.output):
            read_by_others.update(node.input)
        else:
            excluded.append(node.name)
    return excluded


class QuantizedReference:
    """The quantized stages one by one, all on every sample: what a composed file must compute."""

    def __init__(self, plan: ExportPlan, models: Sequence[onnx.ModelProto]) -> None:
        """Open the stages.

        Args:
            plan: the network.
            models: its quantized stages.
        """
        import onnxruntime

        self.plan = plan
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._sessions = [
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for model in models
        ]

    def confidences(self, policy: ThresholdPolicy, images: Tensor) -> Tensor:
        """Return the confidences of a batch at every exit, (N, B) float64."""
        return self._all(policy, images)[1]

    def predict(self, policy: Policy, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, classes) and exits (B,)."""
        logits, confidences = self._all(policy, images)
        if not isinstance(policy, ThresholdPolicy):
            return logits[-1], torch.full((len(images),), self.plan.num_exits)
        bounds = [policy.sign * policy.threshold_at(i) for i in range(self.plan.num_exits)]
        exits = confidences.float() >= torch.tensor(bounds, dtype=torch.float32).unsqueeze(1)
        last = torch.ones(1, len(images), dtype=torch.bool)
        index = torch.cat([exits, last]).long().argmax(0)
        return logits[index, torch.arange(len(images))], index

    def _all(self, policy: Policy, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N+1, B, classes) and confidences (N, B) float64."""
        logits, confidences = [], []
        tensors = {self.plan.stages[0].inputs[0].name: images.contiguous().numpy()}
        for stage, session in zip(self.plan.stages, self._sessions, strict=True):
            if stage.inputs[-1].name == ALPHA:
                tensors[ALPHA] = torch.tensor(policy.alpha).numpy()
            names = [spec.name for spec in stage.outputs]
            tensors = dict(zip(names, session.run(names, tensors), strict=True))
            logits.append(torch.from_numpy(tensors.pop(LOGITS)))
            if CONFIDENCE in tensors:
                confidences.append(torch.from_numpy(tensors.pop(CONFIDENCE)).double())
        return torch.stack(logits), torch.stack(confidences) if confidences else torch.empty(0)


def compare_quantized(
    plan: ExportPlan,
    reference: QuantizedReference,
    images: Tensor,
    labels: Tensor | None,
    num_calibrated: int,
) -> QuantizationReport:
    """Compare a quantized network with the network, under the active policy.

    Args:
        plan: the network.
        reference: the quantized one.
        images: (n, …) that ranges were not calibrated on, n ≥ 1.
        labels: (n,) classes, if known.
        num_calibrated: number of images that ranges were calibrated on.
    """
    policy = plan.ee.policy
    with torch.inference_mode():
        before = [plan.ee.run_with(batch, policy) for batch in images.split(CALIBRATION_BATCH)]
    after = [reference.predict(policy, batch) for batch in images.split(CALIBRATION_BATCH)]
    (logits, exits), (new_logits, new_exits) = (
        tuple(torch.cat(parts) for parts in zip(*found, strict=True)) for found in (before, after)
    )
    classes, new_classes = logits.argmax(1), new_logits.argmax(1)
    shares = [
        torch.bincount(found, minlength=plan.num_exits + 1).double() / len(images)
        for found in (exits, new_exits)
    ]
    accuracies = [None, None]
    if labels is not None:
        accuracies = [_share(found == labels) for found in (classes, new_classes)]  # type: ignore[misc]
    return QuantizationReport(
        num_calibrated,
        len(images),
        _share(classes == new_classes),
        _share(exits == new_exits),
        tuple(shares[0].tolist()),
        tuple(shares[1].tolist()),
        accuracies[0],
        accuracies[1],
    )


def _share(found: Tensor) -> float:
    return float(found.double().mean())
