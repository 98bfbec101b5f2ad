"""Exported networks with exits on ONNX Runtime, or OpenVINO; needs numpy and that runtime only.

    network = leenet_fx.run.load("network.onnx")
    prediction = network.predict(images)

This folder can be copied to a machine that has neither torch nor leenet_fx, and imported there as
`run`. It reads what `leenet_fx.export` writes in the formats "onnx", "onnx-stages" and
"openvino", and runs no code from these files.
"""

from .network import ExportedNetwork, load
from .queues import Prediction

__all__ = ["ExportedNetwork", "Prediction", "load"]
