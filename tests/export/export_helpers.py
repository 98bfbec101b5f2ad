"""Small networks that tests of exports use, and ONNX Runtime without leenet_fx."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
from networks import images, tiny

import leenet_fx


def small(at=(0, 2), **options):
    """A TinyNet with exits after two of its four blocks, in evaluation mode."""
    example = images(1, 3, 16, 16)
    return leenet_fx.attach(tiny(), list(at), example_inputs=example, **options)


def session(path):
    """An ONNX Runtime session of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def run_file(path, batch, thresholds=None, **inputs):
    """Logits, exits and confidences of an ONNX file, with no code of leenet_fx."""
    inputs = {"images": batch.numpy(), **inputs}
    if thresholds is not None:
        inputs["thresholds"] = np.asarray(thresholds, np.float32)
    return session(path).run(["logits", "exit_index", "confidence"], inputs)


def documented(language, word=""):
    """The code block with a word on the page on deployment."""
    page = Path(__file__).parents[2] / "docs" / "pages" / "deployment.md"
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)
    (code,) = (block for block in blocks if word in block)
    return code
