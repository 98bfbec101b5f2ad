"""The training of one phase: preparation, epochs, best weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from leenet_fx.calibration.cached_outputs import (
    CachedOutputs,
    batch_outputs,
    outputs_of_all_views,
)
from leenet_fx.calibration.temperature import fit_temperature
from leenet_fx.errors import TrainingError
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.methods.phases import Phase
from leenet_fx.progress import report
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training.collectives import sum_gradients, sum_over_processes
from leenet_fx.training.feature_source import FeatureSource
from leenet_fx.training.metrics import Epoch, FiniteMean, NotFiniteError
from leenet_fx.training.optimizers import (
    make_final_optimizer,
    make_optimizers,
    make_schedulers,
)
from leenet_fx.training.parameters import (
    check_trainable,
    restore,
    snapshot,
    trained_state,
    update_parameters,
)
from leenet_fx.training.phase_loss import PhaseLoss
from leenet_fx.training.preparation import check_finite, final_input_statistics, first_samples
from leenet_fx.training.sanity import has_initial_weights
from leenet_fx.training.standardized_adam import is_plain
from leenet_fx.training.turns import Turn, turn_at, warn_of_short_updates

logger = logging.getLogger("leenet_fx")

KEPT_SAMPLES = 512
"""Number of training images that are kept for checks of what was trained."""


class PhaseTrainer:
    """Trains the parameters of one phase in place.

    Args:
        ee: the network.
        phase: of the method.
        final: the final classifier, if it is trained.
        fabric: of the processes that share each batch.
        costs: (N+1,) relative costs.
        cost_weight: weight of the cost against the error.
        lr: Adam's maximum learning rate; None takes the phase's own.
        epochs: number of epochs.
        patience: number of epochs without a lower validation loss after which training stops.
        generator: for gates' initial weights and random cost weights.
        evaluation_modules: names of modules that stay in evaluation mode.

    Attributes:
        done: number of completed epochs.
        best: trained tensors after the best epoch.
        samples: the first training samples, for checks; None if the phase reads none, or trains the
            backbone.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        phase: Phase,
        final: nn.Module | None,
        *,
        fabric: Fabric,
        costs: Tensor,
        cost_weight: float,
        lr: float | None,
        epochs: int,
        patience: int | None,
        generator: torch.Generator,
        evaluation_modules: Sequence[str] = (),
    ) -> None:
        self.ee = ee
        self.phase = phase
        self.fabric = fabric
        self.lr = phase.lr if lr is None else lr
        self.epochs = epochs
        self.patience = patience
        self.generator = generator
        self.evaluation_modules = [ee.get_submodule(name) for name in evaluation_modules]
        self.branches = list(ee.exits.branches())
        self.loss = PhaseLoss(ee, phase, final, costs, cost_weight)
        self.state = trained_state(ee, final, backbone="backbone" in phase.parameter_groups)
        groups = [update_parameters(ee, update, final) for update in phase.updates]
        self.parameters = [group.all() for group in groups]
        check_trainable(chain.from_iterable(self.parameters), f"phase '{phase.name}'")
        sgd_lr = self.lr * phase.sgd_lr / phase.lr
        alone = phase.parameter_groups == {"final"}
        self.final = final if alone and final is not None and is_plain(final) else None
        self.optimizers: list[list[Any]] = [
            [
                fabric.setup_optimizers(o)
                for o in (
                    make_optimizers(group, self.lr, sgd_lr, phase.backbone_decay)
                    if self.final is None
                    else [make_final_optimizer(self.final, self.lr)]
                )
            ]
            for group in groups
        ]
        self.before = snapshot(self.state)
        self.best = snapshot(self.state)
        self.best_loss = math.inf
        self.stale = 0
        self.done = 0
        self.seen = 0
        self.trained = [0] * len(phase.updates)
        self.samples: FeatureBatch | None = None

    def prepare(self, train: FeatureSource) -> None:
        """Fit statistics of inputs and temperatures, and reset gates; classifiers are kept."""
        self._set_modes(training=False)
        groups = self.phase.parameter_groups
        with torch.no_grad():
            if groups & {"classifiers", "means"}:
                samples = first_samples(train, self.fabric, self.phase.name)
                for branch, tensors in zip(self.branches, samples.pooled, strict=True):
                    branch.fit_input_statistics(*tensors)
                self._keep(samples)
            for branch in self.branches:
                for group in sorted(groups):
                    branch.begin_phase(group)
            if "gates" in groups:
                self._prepare_gates(train)
            if self.final is not None:
                self._prepare_final(train)
        self.best = snapshot(self.state)

    def run(
        self,
        train: FeatureSource,
        val: FeatureSource | None,
        history: list[Epoch],
        after_epoch: Callable[[], None],
    ) -> None:
        """Train the remaining epochs, and restore the best weights at the end.

        Args:
            train: samples to train on.
            val: samples for the validation loss.
            history: is appended to.
            after_epoch: is called after each epoch.

        Raises:
            TrainingError: the loss is not finite; the last good weights are restored.
        """
        while self.done < self.epochs and not self._is_stopped():
            good = snapshot(self.state)
            start = time.perf_counter()
            try:
                train_loss = self._train_epoch(train)
                val_loss = self._loss_on(val) if val is not None else None
            except NotFiniteError as error:
                restore(self.state, good if self.done else self.before)
                source = f"after epoch {self.done}" if self.done else "from before the phase"
                raise TrainingError(
                    f"The loss of phase '{self.phase.name}' is {error.value} in epoch "
                    f"{self.done + 1} ({error.location}): training stopped, and the weights are "
                    f"those {source}. Look for NaN in the images, or lower lr={self.lr}."
                ) from None
            self.done += 1
            if val_loss is None or val_loss < self.best_loss:
                self.best = snapshot(self.state)
                self.best_loss = math.inf if val_loss is None else val_loss
                self.stale = 0
            else:
                self.stale += 1
            seconds = time.perf_counter() - start
            history.append(Epoch(self.phase.name, self.done, train_loss, val_loss, seconds))
            after_epoch()
        warn_of_short_updates(self.phase, self.trained)
        restore(self.state, self.best)
        self._set_modes(training=False)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that another run needs to resume the phase."""
        return {
            "state": snapshot(self.state),
            "optimizers": [[o.state_dict() for o in group] for group in self.optimizers],
            "best": self.best,
            "best_loss": self.best_loss,
            "stale": self.stale,
            "done": self.done,
            "seen": self.seen,
            "trained": self.trained,
            "temperatures": self.loss.temperatures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the state that `state_dict` returned."""
        restore(self.state, state["state"])
        for optimizers, states in zip(self.optimizers, state["optimizers"], strict=True):
            for optimizer, saved in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(saved)
        self.best = [value.to(self.fabric.device) for value in state["best"]]
        self.best_loss, self.stale, self.done = state["best_loss"], state["stale"], state["done"]
        self.seen, self.trained = state["seen"], list(state["trained"])
        self.loss.temperatures = state["temperatures"].to(self.fabric.device)

    def _keep(self, samples: FeatureBatch) -> None:
        """Keep the features of some samples, if they stay valid."""
        if "backbone" not in self.phase.parameter_groups:
            self.samples = samples.first(KEPT_SAMPLES)

    def _set_modes(self, *, training: bool) -> None:
        self.ee.train(training and "backbone" in self.phase.parameter_groups)
        for module in self.evaluation_modules:
            module.training = False
        if "classifiers" in self.phase.parameter_groups:
            self.ee.exits.train(training)

    def _is_stopped(self) -> bool:
        return self.patience is not None and self.stale >= self.patience

    def _train_epoch(self, train: FeatureSource) -> float:
        """Train one epoch and return the mean loss."""
        if self.phase.parameter_groups == {"means"}:
            self._count_means(train)
            return self._loss_on(train)
        self._set_modes(training=True)
        mean = FiniteMean("train")
        batches = train.count_batches()
        by_batch = batches is not None or self.phase.period is not None
        total = None if by_batch and batches is None else self.epochs * (batches or 1)
        active: Turn | None = None
        schedulers: list[LambdaLR] = []
        for index, (batch, cached) in enumerate(self._batches(train)):
            position = self.seen if by_batch else self.done
            turn = turn_at(self.phase, position, total)
            optimizers, parameters = self.optimizers[turn.update], self.parameters[turn.update]
            self.trained[turn.update] += 1
            update = self.phase.updates[turn.update]
            if turn != active:
                active, start = turn, position - turn.start
                schedulers = make_schedulers(optimizers, position=start, length=turn.length)
            alpha = self._random_alpha(batch)
            with self.fabric.autocast():
                if len(batch.labels):
                    loss = self.loss(batch, cached, update, alpha, self._progress)
                else:
                    # A process without samples takes part in the sum of gradients with zeros.
                    loss = torch.stack([p.sum() * 0 for p in parameters]).sum()
                loss = loss * (len(batch.labels) / batch.total)
            self.fabric.backward(loss, inputs=parameters)
            mean.add(sum_gradients(parameters, loss.detach(), self.fabric), batch.total)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.seen += 1
            if by_batch:
                for scheduler in schedulers:
                    scheduler.step()
            if batches is not None and index + 1 < batches:
                report(
                    f"training {self.phase.name}",
                    f"epoch {self.done + 1} of {self.epochs}, batch {index + 1} of {batches}",
                    (self.done + (index + 1) / batches) / self.epochs,
                )
        return mean.value

    @torch.no_grad()
    def _loss_on(self, source: FeatureSource) -> float:
        """Return the mean loss over all samples, and over the updates of the phase."""
        self._set_modes(training=False)
        total, count = torch.zeros((), dtype=torch.float64), 0
        updates = self.phase.updates
        for batch, cached in self._batches(source):
            alpha = self._even_alpha(batch)
            if len(batch.labels):
                with self.fabric.autocast():
                    for update in updates:
                        loss = self.loss(batch, cached, update, alpha, self._progress)
                        total += loss.double().cpu() * len(batch.labels) / len(updates)
            count += batch.total
        mean = FiniteMean("val")
        mean.add(float(sum_over_processes(total, self.fabric)) / max(count, 1), count)
        return mean.value

    def _batches(
        self, source: FeatureSource
    ) -> Iterator[tuple[FeatureBatch, CachedOutputs | None]]:
        """Yield batches, with the exits' outputs if only gates are trained."""
        groups = self.phase.parameter_groups
        if "backbone" in groups:
            yield from ((batch, None) for batch in source.images())
        elif groups == {"gates"} and self._gates_are_separate:
            outputs = None
            if isinstance(source.data, FeatureCache):
                outputs = outputs_of_all_views(self.ee, source.data)
            if outputs is None:
                for batch in source.features(final=True):
                    yield batch, batch_outputs(self.branches, batch)
            else:
                for batch in source.indices():
                    assert batch.indices is not None
                    yield batch, outputs.select(batch.indices)
        else:
            train_final = "final" in groups
            for batch in source.features(final=self.loss.needs_final, train_final=train_final):
                yield batch, None

    @property
    def _gates_are_separate(self) -> bool:
        """Whether no gate shares parameters with the classifiers, so that its inputs are fixed."""
        classifiers = {id(p) for b in self.branches for p in b.classifier_parameters()}
        return not any(id(p) in classifiers for b in self.branches for p in b.gate_parameters())

    def _prepare_final(self, train: FeatureSource) -> None:
        """Fit the statistics of the final classifier's inputs, by which its steps are scaled.

        A new classifier starts at 0: for a convex loss random weights would only be noise, of which
        part remains.
        """
        assert self.final is not None
        if self.ee.spec.classifier_is_new and has_initial_weights(self.final):
            for parameter in self.final.parameters():
                parameter.zero_()
        statistics = final_input_statistics(train, self.fabric, self.phase.name)
        if statistics is not None:
            for optimizer in chain.from_iterable(self.optimizers):
                optimizer.optimizer.set_statistics(*statistics)

    def _prepare_gates(self, train: FeatureSource) -> None:
        """Fit temperatures and statistics of gate inputs, and draw the gates' initial weights."""
        samples = first_samples(train, self.fabric, self.phase.name)
        self._keep(samples)
        outputs = batch_outputs(self.branches, samples)
        check_finite(outputs.gate_inputs, self.phase.name)
        if self.phase.temperature_scaled:
            labels = self.loss.labels(samples.labels, samples.final)
            fitted = [fit_temperature(logits, labels) for logits in outputs.logits]
            self.loss.temperatures = outputs.logits[-1].new_tensor(fitted)
        for branch, gate_inputs in zip(self.branches, outputs.gate_inputs, strict=True):
            branch.fit_gate_statistics(gate_inputs)
        for index, branch in enumerate(self.branches):
            # Initially each exit and the final classifier receive the same share of samples.
            branch.reset_gate(self.generator, 1 / (len(self.branches) + 1 - index))

    @torch.no_grad()
    def _count_means(self, train: FeatureSource) -> None:
        """Compute class means from one pass."""
        for batch in train.features(final=self.phase.labels == "backbone"):
            labels = self.loss.labels(batch.labels, batch.final)
            for branch, tensors in zip(self.branches, batch.pooled, strict=True):
                branch.accumulate_class_means(labels, *tensors)
        for branch in self.branches:
            branch.finish_class_means(partial(sum_over_processes, fabric=self.fabric))

    def _random_alpha(self, batch: FeatureBatch) -> Tensor | None:
        """Draw a cost weight for each sample (B,), the same with any number of processes."""
        if not self.phase.random_alpha:
            return None
        return self._share(torch.rand(batch.total, generator=self.generator), batch)

    def _even_alpha(self, batch: FeatureBatch) -> Tensor | None:
        """Return evenly spaced cost weights from 0 to 1 (B,), the same in each epoch."""
        if not self.phase.random_alpha:
            return None
        return self._share(torch.linspace(0, 1, batch.total), batch)

    def _share(self, values: Tensor, batch: FeatureBatch) -> Tensor:
        """Return this process's share of values for the whole batch."""
        share = values[self.fabric.global_rank :: self.fabric.world_size]
        return share.to(batch.labels.device)

    @property
    def _progress(self) -> float:
        return min(self.done / max(self.epochs - 1, 1), 1.0)
