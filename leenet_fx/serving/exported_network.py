"""An exported network, in ONNX Runtime or OpenVINO, for a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leenet_fx.data.transforms import TransformConfig
from leenet_fx.run import ExportedNetwork, load
from leenet_fx.run.queues import Group, Setting, join, prediction_of, run_stage
from leenet_fx.serving.served_network import SAVED, Answers, ServedNetwork, ServedPoint


class OnnxNetwork(ServedNetwork):
    """An `ExportedNetwork` that a server runs; a file without stages is a single stage."""

    def __init__(
        self, network: ExportedNetwork, threads: int | None, transform: TransformConfig | None
    ) -> None:
        """Prepare a network.

        Args:
            network: the network.
            threads: with which it was loaded.
            transform: how images become its input.
        """
        self.network, self.threads = network, threads
        self.transform = transform
        description = network.description
        self.name = str(description["model"])
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes
        self.class_names = network.class_names
        self.exit_names = (*description["exits"], "final classifier")
        self.num_stages = len(description["stages"]) if network.has_stages else 1
        costs = tuple(float(cost) for cost in description["costs"])
        self._settings: dict[str, Setting] = {}
        found: dict[str, ServedPoint] = {}
        for name, point in network.operating_points.items():
            self._settings[name] = network.setting(name)
            samples = int(point.get("samples", 0))
            shares = tuple(point["exit_shares"]) if samples else None
            found[name] = ServedPoint(name, costs, shares, samples)
        active = network.setting(None)
        in_use = [name for name, other in self._settings.items() if _equal(active, other)]
        if not in_use:
            in_use = [SAVED if SAVED not in found else f"{SAVED} policy"]
            self._settings[in_use[0]] = active
            found[in_use[0]] = ServedPoint(in_use[0], costs)
        self.points = found
        self.default_point = in_use[-1]

    def __reduce__(self) -> Any:
        # Sessions of the runtimes cannot be copied to another process.
        return _reload, (self.network.path, self.threads, self.transform)

    def first_group(self, images: Sequence[NDArray[np.float32]], numbers: Sequence[int]) -> Any:
        return Group([np.stack(images)], np.asarray(numbers, np.int64))

    def join(self, stage: int, groups: Sequence[Any]) -> Any:
        if stage:
            return join(self.network.description["stages"][stage], groups)
        images = np.concatenate([group.tensors[0] for group in groups])
        return Group([images], np.concatenate([group.indices for group in groups]))

    def run(self, stage: int, point: str, group: Any) -> tuple[list[Answers], Any | None]:
        setting = self._settings[point]
        if not self.network.has_stages:
            return self._run_file(setting, group), None
        is_last = stage == self.num_stages - 1
        numbers, logits, remaining = run_stage(
            self.network.description["stages"][stage],
            self.network.sessions[stage],
            setting,
            group,
            None if is_last else stage,
        )
        if not len(numbers):
            return [], remaining
        exit_index = self.network.num_exits if is_last else stage
        found = prediction_of(logits, np.full(len(numbers), exit_index), setting.temperatures)
        labels = logits.argmax(1).tolist()
        answers = Answers(exit_index, numbers.tolist(), labels, found.confidence.tolist())
        return [answers], remaining

    def probabilities(
        self, image: NDArray[np.float32], point: str, last: int
    ) -> dict[int, NDArray[np.float32]]:
        setting = self._settings[point]
        final = self.network.num_exits
        found = {}
        for index in range(last + 1):
            forced: list[float] | None = None
            if setting.thresholds is not None:
                if index < final and not self._is_used(setting, index):
                    continue
                forced = [setting.sign * (-np.inf if i == index else np.inf) for i in range(final)]
            elif index < final:
                continue
            alpha = None if setting.alpha is None else float(setting.alpha)
            logits = self.network.predict(image[None], thresholds=forced, alpha=alpha).logits
            divided = (
                logits if setting.temperatures is None else logits / setting.temperatures[index]
            )
            exponentials = np.exp(divided[0] - divided[0].max())
            found[index] = exponentials / exponentials.sum()
        return found

    def _run_file(self, setting: Setting, group: Group) -> list[Answers]:
        found = self.network.run_file(group.tensors[0], setting)
        labels = found.logits.argmax(1)
        return [
            Answers(
                int(exit_index),
                group.indices[here].tolist(),
                labels[here].tolist(),
                found.confidence[here].tolist(),
            )
            for exit_index in np.unique(found.exit_index)
            if (here := found.exit_index == exit_index).any()
        ]

    @staticmethod
    def _is_used(setting: Setting, index: int) -> bool:
        assert setting.thresholds is not None
        return bool(setting.sign * setting.thresholds[index] != np.inf)


def _equal(first: Setting, second: Setting) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


def _reload(path: Path, threads: int | None, transform: TransformConfig | None) -> OnnxNetwork:
    return OnnxNetwork(load(path, threads=threads), threads, transform)
