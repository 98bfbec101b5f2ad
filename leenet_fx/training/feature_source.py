"""Batches of features for training, from a loader or from a feature cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leenet_fx.errors import InputError
from leenet_fx.features.batches import check_loader, check_new_pass, checked, count_batches
from leenet_fx.features.feature_batch import FeatureBatch, final_layer_inputs, pool_features
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.surgery.module import EarlyExitModule, final_classifier

Data: TypeAlias = Iterable[Any] | FeatureCache
"""A loader of (images (B, …), labels (B,)), or a feature cache."""


@dataclass(frozen=True)
class FitData:
    """The data of a training run.

    Attributes:
        train: for all phases but those that train gates or ensembles alone.
        val: for the validation loss, if any.
        calibration: for phases that train gates or ensembles alone; None takes `train`.
    """

    train: Data
    val: Data | None
    calibration: Data | None

    def named(self) -> list[tuple[str, Data]]:
        """Return the data that is present, by the name of the argument of `fit`."""
        others = (("val", self.val), ("calibration", self.calibration))
        return [("train", self.train), *((name, data) for name, data in others if data is not None)]

    def loaders(self) -> list[object]:
        """Return the loaders, those of feature caches included."""
        return [getattr(data, "loader", data) for _, data in self.named()]

    def caches(self) -> list[FeatureCache]:
        """Return the feature caches."""
        return [data for _, data in self.named() if isinstance(data, FeatureCache)]


class FeatureSource:
    """Batches for training, each shared among processes.

    Args:
        ee: the network.
        data: a loader or a feature cache.
        name: of the argument of `fit`, for messages.
        fabric: of the processes.
        final: the final classifier, if it is trained.
        labelled: whether labels are needed.

    Raises:
        InputError: a feature cache that does not fit the network, or lacks what training needs.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        data: Data,
        name: str,
        fabric: Fabric,
        final: nn.Module | None,
        labelled: bool = True,
    ) -> None:
        self.ee = ee
        self.data = data
        self.name = name
        self.labelled = labelled
        self._iterator: object = None
        self.rank, self.processes = fabric.global_rank, fabric.world_size
        self.device = fabric.device
        self.autocast = fabric.autocast
        self.dtype = next(ee.exits.parameters()).dtype
        if isinstance(data, FeatureCache):
            data.check(ee)
            if labelled:
                data.check_labelled(name)
            if final is not None and not data.has_final_inputs:
                raise InputError(
                    "The final classifier cannot be trained on this feature cache, since the "
                    "logits are not the output of one linear layer: train it without a cache first."
                )

    def count_batches(self) -> int | None:
        """Return the number of batches of an epoch, or None if it is unknown."""
        return count_batches(getattr(self.data, "loader", self.data))

    def images(self) -> Iterator[FeatureBatch]:
        """Yield one pass over the images."""
        for images, labels, total in self._batches():
            yield FeatureBatch((), None, None, labels, total, images)

    def features(self, *, final: bool, train_final: bool = False) -> Iterator[FeatureBatch]:
        """Yield one pass over the features that the exits read.

        Args:
            final: whether the final logits are needed.
            train_final: whether the gradient of the final classifier is needed.
        """
        if isinstance(self.data, FeatureCache):
            classifier = final_classifier(self.ee)
            yield from self.data.epoch(self.device, self.rank, self.processes, classifier)
            return
        for images, labels, total in self._batches():
            logits = None
            with self.autocast():
                features = self.ee.exit_features(images)
                with torch.no_grad():
                    pooled = tuple(
                        tuple(values.to(self.dtype) for values in tensors)
                        for tensors in pool_features(self.ee, features)
                    )
                    if final and not train_final:
                        logits = next(features)[0].to(self.dtype)
                if train_final:
                    logits = next(features)[0].to(self.dtype)
            yield FeatureBatch(pooled, logits, None, labels, total)

    def final_inputs(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the inputs of the final classifier as rows (r, n), and the size of the whole batch.

        Yields nothing if they cannot be observed.
        """
        if isinstance(self.data, FeatureCache):
            for batch in self.data.epoch(self.device, self.rank, self.processes):
                assert batch.final_inputs is not None
                yield batch.final_inputs, batch.total
            return
        for images, _, total in self._batches():
            with self.autocast():
                inputs = final_layer_inputs(self.ee, images)
            if inputs is None:
                return
            yield inputs, total

    def indices(self) -> Iterator[FeatureBatch]:
        """Yield one pass over the positions in a feature cache."""
        assert isinstance(self.data, FeatureCache)
        yield from self.data.epoch_indices(self.device, self.rank, self.processes)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield this process's images and labels, and the size of the whole batch."""
        classes = self.ee.spec.num_classes
        iterator = iter(check_loader(self.data, self.name))
        check_new_pass(self.data, self._iterator, iterator, self.name)
        # Held, so that no later iterator is another object at the same address; but that of a
        # DataLoader may hold processes.
        self._iterator = None if isinstance(self.data, DataLoader) else iterator
        for images, labels in checked(
            iterator, self.name, classes, self.device, labelled=self.labelled
        ):
            share = slice(self.rank, None, self.processes)
            yield images[share], labels[share], len(labels)
