"""An exported network on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DependencyError, InputError, StorageError, UnknownNameError
from .files import MANIFEST, PREFIX, check_schema, read_file, read_folder, read_json
from .openvino_session import WEIGHTS, XML, OpenVinoSession
from .queues import Prediction, Queues, Setting, prediction_of


def load(path: str | Path, *, threads: int | None = None) -> ExportedNetwork:
    """Open an exported network.

    Args:
        path: a file of format "onnx", or a folder of format "onnx-stages" or "openvino".
        threads: number of threads of each operator; None leaves it to the runtime.

    Raises:
        StorageError: a file is missing, damaged, of a newer schema, or was not written by
            `leenet_fx.export`.
        DependencyError: onnxruntime, or openvino, is missing.
    """
    path = Path(path)
    try:
        return _load(path, threads)
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"'{path}' lacks a part of its description: {error!r}.") from error


def _load(path: Path, threads: int | None) -> ExportedNetwork:
    if path.is_dir():
        content = read_folder(path)
        description = read_json(content[MANIFEST], path / MANIFEST)
        check_schema(description, path)
        if description["format"] == "openvino":
            session = OpenVinoSession(content[XML], content[WEIGHTS], threads)
            return ExportedNetwork(path, description, [session])
    else:
        content = {path.name: read_file(path)}
        description = {}
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if path.is_dir():
        names = [stage["file"] for stage in description["stages"]]
        sessions = [_session(runtime, content[name], options) for name in names]
    else:
        sessions = [_session(runtime, content[path.name], options)]
        properties = sessions[0].get_modelmeta().custom_metadata_map
        description = {
            key.removeprefix(PREFIX): read_json(value, path)
            for key, value in properties.items()
            if key.startswith(PREFIX)
        }
        check_schema(description, path)
    return ExportedNetwork(path, description, sessions)


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network.

    Attributes:
        path: of the file or folder.
        description: what the network is: model, classes, preprocessing, policy, operating points.
        sessions: of the runtime, one for each file.
    """

    path: Path
    description: Mapping[str, Any]
    sessions: Sequence[Any] = field(repr=False)

    @property
    def num_exits(self) -> int:
        """N, the number of exits before the final classifier."""
        return int(self.description["num_exits"])

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return int(self.description["num_classes"])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the logits; None if not known."""
        names = self.description["class_names"]
        return None if names is None else tuple(names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.description["image_shape"])

    @property
    def operating_points(self) -> dict[str, Mapping[str, Any]]:
        """The operating points, by name."""
        return {point["name"]: point for point in self.description["operating_points"]}

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pixels as the network expects them.

        Args:
            pixels: (B, H, W, C) uint8, already resized and cropped to the network's size.

        Raises:
            InputError: another shape or dtype, or mean and deviation are not in the file.
        """
        channels, height, width = self.image_shape
        preprocessing = self.description["preprocessing"]
        if preprocessing is None:
            raise InputError(f"'{self.path}' has no preprocessing: pass images to predict.")
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (height, width, channels):
            raise InputError(
                f"Expected pixels (B, {height}, {width}, {channels}) of dtype uint8, got "
                f"{pixels.shape} of {pixels.dtype}."
            )
        mean, std = (np.asarray(preprocessing[key], np.float32) for key in ("mean", "std"))
        scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def predict(
        self,
        images: NDArray[np.float32],
        *,
        point: str | None = None,
        thresholds: float | Sequence[float] | None = None,
        alpha: float | None = None,
    ) -> Prediction:
        """Run the network; each sample stops at its exit.

        Args:
            images: (B, …) float32, B ≥ 0.
            point: name of the operating point whose thresholds are used.
            thresholds: N numbers on the policy's scale, or one for all exits; None uses those that
                were active when the network was exported.
            alpha: cost weight in [0, 1], for gates that are conditioned on it.

        Raises:
            InputError: images, thresholds or alpha that do not fit.
            UnknownNameError: no such operating point.
        """
        setting = self.setting(point, thresholds, alpha)
        self._check_images(images)
        if not self.has_stages:
            return self.run_file(images, setting)
        if not len(images):
            return prediction_of(np.empty((0, self.num_classes), np.float32), np.empty(0, np.int64))
        queues = self._queues(setting, len(images))
        queues.add(images)
        queues.finish_oldest()
        return queues.pop_finished()[0]

    def predict_stream(
        self,
        batches: Iterable[NDArray[np.float32]],
        *,
        batch_size: int | None = None,
        max_delay: int = 8,
        point: str | None = None,
        thresholds: float | Sequence[float] | None = None,
        alpha: float | None = None,
    ) -> Iterator[Prediction]:
        """Predict a stream of batches; the remaining samples of several batches run together.

        Of a single file, whose stages do not run separately, each batch is predicted by itself.

        Args:
            batches: images (B, …).
            batch_size: number of samples that a stage waits for; None takes the first batch's size.
            max_delay: number of later batches that may be read before the prediction of a batch.
            point: as for `predict`.
            thresholds: as for `predict`.
            alpha: as for `predict`.

        Yields:
            One prediction for each batch, in order.

        Raises:
            InputError, UnknownNameError: as `predict`.
        """
        setting = self.setting(point, thresholds, alpha)
        for name, value, least in (("batch_size", batch_size, 1), ("max_delay", max_delay, 0)):
            if value is not None and (int(value) != value or value < least):
                raise InputError(f"{name} must be a whole number from {least}, got {value!r}.")
        return self._stream(batches, setting, batch_size, max_delay)

    def _stream(
        self, batches: Iterable[Any], setting: Setting, batch_size: int | None, max_delay: int
    ) -> Iterator[Prediction]:
        queues: Queues | None = None
        for images in batches:
            self._check_images(images)
            if not self.has_stages:
                yield self.run_file(images, setting)
                continue
            if queues is None:
                queues = self._queues(setting, batch_size or max(1, len(images)))
            queues.add(images)
            queues.run_full()
            while queues.is_overdue(max_delay):
                queues.finish_oldest()
            yield from queues.pop_finished()
        while queues is not None and queues.is_overdue(0):
            queues.finish_oldest()
            yield from queues.pop_finished()

    def run_file(self, images: NDArray[np.float32], setting: Setting) -> Prediction:
        """Run a network whose stages are in one file."""
        inputs: dict[str, Any] = {"images": np.ascontiguousarray(images)}
        if setting.thresholds is not None:
            inputs["thresholds"] = setting.thresholds
        if setting.alpha is not None:
            inputs["alpha"] = setting.alpha
        names = ["logits", "exit_index", "confidence"]
        return Prediction(*self.sessions[0].run(names, inputs))

    @property
    def has_stages(self) -> bool:
        """Whether stages are files of their own."""
        return "stages" in self.description

    def _queues(self, setting: Setting, batch_size: int) -> Queues:
        stages = self.description["stages"]
        return Queues(stages, self.sessions, self.num_exits, self.num_classes, setting, batch_size)

    def setting(
        self, point: str | None, thresholds: Any = None, alpha: float | None = None
    ) -> Setting:
        """Return thresholds and α; see `predict` for arguments and errors."""
        policy = self.description["policy"]
        active, active_alpha = policy["thresholds"], policy["alpha"]
        if point is not None:
            if thresholds is not None:
                raise InputError("Pass an operating point or thresholds, not both.")
            if point not in self.operating_points:
                names = ", ".join(sorted(self.operating_points)) or "none"
                raise UnknownNameError(f"No operating point '{point}'. Available: {names}.")
            found = self.operating_points[point]
            thresholds, active_alpha = found["thresholds"], found["alpha"]
        if alpha is not None and active_alpha is None:
            raise InputError(
                f"The gates of '{self.path}' are not conditioned on a cost weight, got "
                f"alpha={alpha!r}."
            )
        alpha = active_alpha if alpha is None else alpha
        if alpha is not None and not 0 <= alpha <= 1:
            raise InputError(f"alpha must lie in [0, 1], got {alpha!r}.")
        if not active and thresholds is not None and self.num_exits:
            raise InputError(f"'{self.path}' has no early exits: it was exported without a policy.")
        temperatures = policy.get("temperatures")
        values = active if thresholds is None else _thresholds(thresholds, self.num_exits)
        return Setting(
            np.asarray(values, np.float32) if active else None,
            int(policy["sign"]),
            None if alpha is None else np.asarray(alpha, np.float32),
            None if temperatures is None else np.asarray(temperatures, np.float32),
        )

    def _check_images(self, images: Any) -> None:
        shape = getattr(images, "shape", None)
        if not isinstance(images, np.ndarray) or shape is None or len(shape) < 1:
            raise InputError(f"Expected images as a numpy array, got {type(images).__name__}.")
        if shape[1:] != self.image_shape:
            raise InputError(
                f"Expected images (B, {', '.join(map(str, self.image_shape))}), got {shape}: the "
                "file is for this size."
            )
        if images.dtype != np.float32:
            raise InputError(f"Expected images of dtype float32, got {images.dtype}.")


def _thresholds(values: Any, num_exits: int) -> list[float]:
    """Return N thresholds.

    Raises:
        InputError: another number of them, or not numbers.
    """
    try:
        numbers = [float(value) for value in np.atleast_1d(np.asarray(values, np.float64))]
    except (TypeError, ValueError) as error:
        raise InputError(f"Thresholds must be numbers, got {values!r}.") from error
    if any(math.isnan(number) for number in numbers):
        raise InputError(f"A threshold must not be NaN, got {values!r}.")
    if len(numbers) == 1:
        numbers *= num_exits
    if len(numbers) != num_exits:
        raise InputError(f"Expected {num_exits} thresholds, one for each exit, got {len(numbers)}.")
    return numbers


def _session(runtime: Any, content: bytes, options: Any) -> Any:
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its errors have no common base.
        raise StorageError(f"ONNX Runtime cannot read the network: {error}") from error


def _runtime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DependencyError(
            "Running an exported network needs onnxruntime: pip install 'leenet-fx[onnx]', or pip "
            "install onnxruntime."
        ) from error
