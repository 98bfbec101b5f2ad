"""One step of a recipe: what it reads, its optimizer, its epochs, its best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from leenet_fx.errors import InputError, TrainingError
from leenet_fx.parts.objectives import exit_losses, fit_temperature
from leenet_fx.parts.recipes import Step, Trains
from leenet_fx.surgery.model import EarlyExitModule, final_classifier
from leenet_fx.training.cache import FeatureCache, Rows, reduce_features
from leenet_fx.training.loaders import batches
from leenet_fx.training.log import Epoch

MEASURED_ON = 2048
"""How many training images tell the scale of inputs, and the temperatures."""

AfterEpoch: TypeAlias = Callable[["StepRun"], None]


class Source:
    """Batches as training sees them, from a loader or from kept features."""

    def __init__(
        self,
        ee: EarlyExitModule,
        data: Iterable[Any] | FeatureCache,
        name: str,
        fabric: Fabric,
        final: nn.Module | None,
    ) -> None:
        self.ee = ee
        self.data = data
        self.name = name
        self.rank, self.processes = fabric.global_rank, fabric.world_size
        self.device = fabric.device
        if isinstance(data, FeatureCache):
            data.check(ee)
            if final is not None and not data.keeps_final_inputs:
                raise InputError(
                    "The final classifier cannot be trained on this feature cache, for the logits "
                    "are not what one linear layer answers: train it without a cache first."
                )

    def epoch(self, trains: Trains) -> Iterator[Rows]:
        """One pass; this process's rows of each batch."""
        if isinstance(self.data, FeatureCache):
            final = final_classifier(self.ee)
            return self.data.epoch(self.device, self.rank, self.processes, final)
        return self._run(self.data, trains)

    def _run(self, loader: Iterable[Any], trains: Trains) -> Iterator[Rows]:
        classes = self.ee.spec.num_classes
        for images, labels in batches(loader, self.name, classes, self.device):
            mine = slice(self.rank, None, self.processes)
            total, images, labels = len(labels), images[mine], labels[mine]
            stages = self.ee.exit_features(images)
            final = None
            with torch.no_grad():
                reduced = reduce_features(self.ee, stages)
                if trains == "gates":
                    final = next(stages)[0]
            if trains == "final":
                final = next(stages)[0]
            yield Rows(reduced, final, None, labels, total)


class StepRun:
    """A step under way.

    Attributes:
        done: epochs that are complete.
        best: trained weights after the best epoch.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        step: Step,
        final: nn.Module | None,
        *,
        fabric: Fabric,
        costs: Tensor,
        alpha: float,
        lr: float | None,
        length: int,
        patience: int | None,
    ) -> None:
        self.ee = ee
        self.step = step
        self.fabric = fabric
        self.costs = costs
        self.alpha = alpha
        self.lr = step.lr if lr is None else lr
        self.length = length
        self.patience = patience
        self.final = final
        self.state = trained_state(ee, final)
        branches = list(ee.exits.branches())
        if step.trains == "gates":
            groups = [branch.gate_parameters() for branch in branches]
        elif step.trains == "classifiers":
            groups = [branch.classifier_parameters() for branch in branches]
        else:
            assert final is not None
            groups = [list(final.parameters())]
        self.parameters = [parameter for group in groups for parameter in group]
        check_trainable(self.parameters, f"step '{step.name}'")
        adam = torch.optim.Adam(self.parameters, lr=self.lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(length, 1))
        self.optimizer: Any = fabric.setup_optimizers(adam)
        self.before = snapshot(self.state)
        self.best = snapshot(self.parameters)
        self.best_loss = math.inf
        self.stale = 0
        self.done = 0
        self.temperatures = torch.ones(ee.num_exits + 1, device=fabric.device)

    def prepare(self, train: Source, generator: torch.Generator) -> None:
        """Scales of inputs, temperatures, and gates at their start; weights go on as they are."""
        branches = list(self.ee.exits.branches())
        if self.step.trains == "classifiers":
            reduced, _ = self._some(train)
            for branch, read in zip(branches, reduced, strict=True):
                branch.standardise_inputs(*read)
        elif self.step.trains == "gates":
            self._prepare_gates(train)
            for index, branch in enumerate(branches):
                # So that every outlet has the same share to begin with.
                branch.reset_gate(generator, 1 / (len(branches) + 1 - index))
        self.best = snapshot(self.parameters)

    def run(
        self,
        train: Source,
        val: Source | None,
        history: list[Epoch],
        after_epoch: Callable[[], None],
    ) -> None:
        """Trains the epochs that are left, and puts the best weights in place.

        Raises:
            TrainingError: the loss is not finite; the last good weights are in place.
        """
        while self.done < self.length and not self._stopped():
            good = snapshot(self.parameters)
            start = time.perf_counter()
            try:
                train_loss = self._train_epoch(train)
                val_loss = self._loss_on(val) if val is not None else None
            except _NotFinite as error:
                if self.done:
                    restore(self.parameters, good)
                else:
                    restore(self.state, self.before)
                kept = f"after epoch {self.done}" if self.done else "from before the step"
                raise TrainingError(
                    f"The loss of step '{self.step.name}' is {error.value} in epoch "
                    f"{self.done + 1} ({error.where}): training stopped, and the weights are those "
                    f"{kept}. Look for NaN in the images, or lower lr={self.lr}."
                ) from None
            self.schedule.step()
            self.done += 1
            if val_loss is None or val_loss < self.best_loss:
                self.best = snapshot(self.parameters)
                self.best_loss = math.inf if val_loss is None else val_loss
                self.stale = 0
            else:
                self.stale += 1
            seconds = time.perf_counter() - start
            history.append(Epoch(self.step.name, self.done, train_loss, val_loss, seconds))
            after_epoch()
        restore(self.parameters, self.best)

    def state_dict(self) -> dict[str, Any]:
        """All that another run needs to go on from here."""
        return {
            "state": snapshot(self.state),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "best_loss": self.best_loss,
            "stale": self.stale,
            "done": self.done,
            "temperatures": self.temperatures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        restore(self.state, state["state"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        device = self.parameters[0].device
        self.best = [value.to(device) for value in state["best"]]
        self.best_loss, self.stale, self.done = state["best_loss"], state["stale"], state["done"]
        self.temperatures = state["temperatures"].to(device)

    def _stopped(self) -> bool:
        return self.patience is not None and self.stale >= self.patience

    def _train_epoch(self, train: Source) -> float:
        mean = _Mean("train")
        for rows in train.epoch(self.step.trains):
            with self.fabric.autocast():
                loss = self._loss(rows) * (len(rows.labels) / rows.total)
            self.fabric.backward(loss, inputs=self.parameters)
            mean.add(self._share(loss.detach()), rows.total)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return mean.value

    def _share(self, loss: Tensor) -> float:
        """Sums gradients and loss over processes, so that each has those of the whole batch."""
        if self.fabric.world_size > 1:
            gradients = [parameter.grad for parameter in self.parameters]
            found = [gradient for gradient in gradients if gradient is not None]
            flat = torch.cat([gradient.flatten() for gradient in found] + [loss.reshape(1)])
            flat = torch.as_tensor(self.fabric.all_reduce(flat, reduce_op="sum"))
            sizes = [gradient.numel() for gradient in found]
            for gradient, values in zip(found, flat[:-1].split(sizes), strict=True):
                gradient.copy_(values.view_as(gradient))
            loss = flat[-1]
        return float(loss)

    @torch.no_grad()
    def _prepare_gates(self, train: Source) -> None:
        branches = list(self.ee.exits.branches())
        reduced, (final, labels) = self._some(train)
        embedded = [b.embed(*read) for b, read in zip(branches, reduced, strict=True)]
        self._check_finite(embedded)
        if self.step.tempered:
            logits = [b.classify(e) for b, e in zip(branches, embedded, strict=True)]
            found = [fit_temperature(at, labels) for at in (*logits, final)]
            self.temperatures = torch.tensor(found, device=final.device, dtype=final.dtype)
        for branch, values in zip(branches, embedded, strict=True):
            branch.standardise(values)

    @torch.no_grad()
    def _some(self, train: Source) -> tuple[list[list[Tensor]], tuple[Tensor, Tensor]]:
        """The first images of all processes: what exits read, final logits, labels."""
        parts: list[Rows] = []
        count = 0
        for rows in train.epoch(self.step.trains):
            parts.append(rows)
            count += rows.total
            if count >= MEASURED_ON:
                break
        widths = [len(tensors) for tensors in parts[0].reduced]
        reduced = [
            [self._gathered([part.reduced[i][j] for part in parts]) for j in range(width)]
            for i, width in enumerate(widths)
        ]
        for tensors in reduced:
            self._check_finite(tensors)
        finals = [part.final for part in parts if part.final is not None]
        labels = self._gathered([part.labels for part in parts])
        return reduced, (self._gathered(finals) if finals else torch.empty(0), labels)

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        return _gather(torch.cat(parts), self.fabric)

    def _check_finite(self, tensors: Iterable[Tensor]) -> None:
        if not all(bool(values.isfinite().all()) for values in tensors):
            raise TrainingError(
                f"The features of step '{self.step.name}' are not finite: nothing was changed. "
                "Look for NaN in the images."
            )

    @torch.no_grad()
    def _loss_on(self, val: Source) -> float:
        total, count = torch.zeros((), dtype=torch.float64), 0
        for rows in val.epoch(self.step.trains):
            with self.fabric.autocast():
                total += self._loss(rows).double().cpu() * len(rows.labels)
            count += rows.total
        if self.fabric.world_size > 1:
            total = torch.as_tensor(self.fabric.all_reduce(total, reduce_op="sum")).cpu()
        mean = _Mean("val")
        mean.add(float(total) / max(count, 1), count)
        return mean.value

    def _loss(self, rows: Rows) -> Tensor:
        if not len(rows.labels):
            return torch.stack([p.sum() * 0 for p in self.parameters]).sum()
        if self.step.trains == "final":
            assert self.final is not None
            logits = rows.final if rows.final_inputs is None else self.final(rows.final_inputs)
            assert logits is not None
            losses = exit_losses([logits], rows.labels)
            return self.step.loss(losses, losses.new_empty(0, 0), self.costs, self.alpha)
        branches = self.ee.exits.branches()
        answers = [b.answer(*read) for b, read in zip(branches, rows.reduced, strict=True)]
        gates = torch.stack([gate for _, gate in answers], 1)
        logits_of_all = [logits for logits, _ in answers]
        if self.step.trains == "gates":
            assert rows.final is not None
            held = [at.detach() for at in logits_of_all]
            at_all = zip([*held, rows.final], self.temperatures, strict=True)
            losses = exit_losses([logits / t for logits, t in at_all], rows.labels)
        else:
            losses = exit_losses(logits_of_all, rows.labels)
        return self.step.loss(losses, gates, self.costs.to(losses.dtype), self.alpha)


class _NotFinite(Exception):
    def __init__(self, value: float, where: str) -> None:
        super().__init__(value)
        self.value = value
        self.where = where


class _Mean:
    """A mean over samples that refuses NaN and infinity."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = 0.0
        self.count = 0
        self.batch = 0

    def add(self, value: float, count: int) -> None:
        self.batch += 1
        if not math.isfinite(value):
            raise _NotFinite(value, f"{self.name} batch {self.batch}")
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float:
        return self.total / self.count


def _gather(values: Tensor, fabric: Fabric) -> Tensor:
    """Every process's rows, first those of process 0."""
    if fabric.world_size == 1:
        return values
    counts = torch.zeros(fabric.world_size, dtype=torch.int64, device=values.device)
    counts[fabric.global_rank] = len(values)
    counts = torch.as_tensor(fabric.all_reduce(counts, reduce_op="sum"))
    start = int(counts[: fabric.global_rank].sum())
    gathered = values.new_zeros(int(counts.sum()), *values.shape[1:])
    gathered[start : start + len(values)] = values
    return torch.as_tensor(fabric.all_reduce(gathered, reduce_op="sum"))


def trained_state(ee: EarlyExitModule, final: nn.Module | None) -> list[Tensor]:
    """Every tensor that a recipe on a frozen backbone may change."""
    state = [*ee.exits.parameters(), *ee.exits.buffers()]
    if final is not None:
        held = {id(tensor) for tensor in state}
        state += [p for p in final.parameters() if id(p) not in held]
    return state


def check_trainable(parameters: Iterable[Tensor], owner: str) -> None:
    """Raises InputError where a parameter has requires_grad=False."""
    if not all(parameter.requires_grad for parameter in parameters):
        raise InputError(f"A parameter that {owner} trains has requires_grad=False.")


def snapshot(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def restore(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Puts copies back."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
