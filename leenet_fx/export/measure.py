"""Predictions and times of an exported network on a set of images."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leenet_fx.run import ExportedNetwork, Prediction


@dataclass(frozen=True)
class Measurement:
    """What an exported network does with images.

    Attributes:
        labels: (n,) predicted classes.
        exit_index: (n,) exits.
        confidence: (n,) largest class probabilities.
        seconds: time of all batches.
        backbone_labels: (n,) the backbone's predicted classes; None without a backbone.
        backbone_seconds: its time; None without a backbone.
    """

    labels: NDArray[np.int64]
    exit_index: NDArray[np.int64]
    confidence: NDArray[np.float32]
    seconds: float
    backbone_labels: NDArray[np.int64] | None
    backbone_seconds: float | None


def measure(
    network: ExportedNetwork,
    batches: Iterable[NDArray[np.float32]],
    *,
    backbone: ExportedNetwork | None = None,
    **setting: Any,
) -> Measurement:
    """Run an exported network on batches of images, and its backbone in turn.

    Args:
        network: the network.
        batches: images (B, …); the time of reading them is not counted.
        backbone: the backbone, exported the same way.
        setting: point, thresholds or alpha, see `ExportedNetwork.predict`.
    """
    predictions: list[Prediction] = []
    others: list[Prediction] = []
    times: list[float] = []
    other_times: list[float] = []
    for images in batches:
        if not times:
            # The first call of a session allocates its memory.
            network.predict(images, **setting)
            _ = None if backbone is None else backbone.predict(images)
        start = time.perf_counter()
        predictions.append(network.predict(images, **setting))
        times.append(time.perf_counter() - start)
        if backbone is not None:
            start = time.perf_counter()
            others.append(backbone.predict(images))
            other_times.append(time.perf_counter() - start)
    logits, exit_index, confidence = (
        np.concatenate(parts) for parts in zip(*predictions, strict=True)
    )
    return Measurement(
        labels=logits.argmax(1),
        exit_index=exit_index,
        confidence=confidence,
        seconds=sum(times),
        backbone_labels=np.concatenate([p.logits for p in others]).argmax(1) if others else None,
        backbone_seconds=sum(other_times) if others else None,
    )
