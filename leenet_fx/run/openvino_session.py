"""An exported network on OpenVINO, called like a session of ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import DependencyError, StorageError

XML, WEIGHTS = "network.xml", "network.bin"
"""Names of the two files of OpenVINO."""


class OpenVinoSession:
    """A compiled model on the CPU, in float32."""

    def __init__(self, xml: bytes, weights: bytes, threads: int | None) -> None:
        """Compile a model.

        Args:
            xml: content of its `.xml`.
            weights: content of its `.bin`.
            threads: number of threads; None leaves it to OpenVINO.

        Raises:
            StorageError: not OpenVINO's format.
            DependencyError: openvino is missing.
        """
        openvino = _openvino()
        # Processors with bfloat16 would use it otherwise.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            # The tensor is not copied: it must live as long as the model.
            self._weights = openvino.Tensor(np.frombuffer(weights, np.uint8))
            model = core.read_model(xml, self._weights)
            self._compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise StorageError(f"OpenVINO cannot read the network: {error}") from error

    def run(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
        """Return the named outputs.

        Args:
            names: of outputs.
            inputs: arrays by name.
        """
        if any(0 in array.shape for array in inputs.values()):
            # OpenVINO would return the outputs of the call before.
            return [self._empty(name) for name in names]
        found = self._compiled(dict(inputs))
        return [found[name].copy() for name in names]

    def _empty(self, name: str) -> Any:
        """Return an output for a batch without samples."""
        output = self._compiled.output(name)
        shape = [0 if size.is_dynamic else size.get_length() for size in output.partial_shape]
        return np.empty(shape, output.element_type.to_dtype())


def _openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise DependencyError(
            "Running this exported network needs openvino: pip install 'leenet-fx[openvino]', or "
            "pip install openvino."
        ) from error
