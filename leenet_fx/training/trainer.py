"""One step of a recipe: what it reads, its optimizers, its epochs, its best weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from leenet_fx.calibration.gate_inputs import (
    GateInputs,
    all_gate_logits,
    gate_inputs_of,
    gate_inputs_of_cache,
)
from leenet_fx.calibration.temperature import fit_temperature
from leenet_fx.errors import InputError, TrainingError
from leenet_fx.features.batches import batches, count_batches
from leenet_fx.features.feature_cache import FeatureBatch, FeatureCache, pool_features
from leenet_fx.methods.phases import Group, Phase, Update
from leenet_fx.objectives import BatchOutputs, SumOfExits
from leenet_fx.parts.branches import run_branches
from leenet_fx.surgery.module import EarlyExitModule, final_classifier
from leenet_fx.training.log import Epoch

logger = logging.getLogger("leenet_fx")

MEASURED_ON = 2048
"""How many training images tell the scale of inputs, and the temperatures."""

DECAY = 1e-3
"""Weight decay of exits' bodies. With SGD at 0.2 a head of convolutions ends 1.5 points higher,
after five epochs of CIFAR-10, than with Adam or AdamW at their best rates and decays."""

WARMED = 0.1
"""Share of a step over which learning rates rise."""


def rate_at(progress: float) -> float:
    """Share of a learning rate: it rises along a line, then falls to 0 along a cosine.

    Args:
        progress: share of the step that is over, in [0, 1].
    """
    if progress < WARMED:
        return progress / WARMED
    return (1 + math.cos(math.pi * (progress - WARMED) / (1 - WARMED))) / 2


AfterEpoch: TypeAlias = Callable[["PhaseTrainer"], None]


class Source:
    """Batches as training sees them, from a loader or from kept features."""

    def __init__(
        self,
        ee: EarlyExitModule,
        data: Iterable[Any] | FeatureCache,
        name: str,
        fabric: Fabric,
        final: nn.Module | None,
        labelled: bool = True,
    ) -> None:
        self.ee = ee
        self.data = data
        self.name = name
        self.labelled = labelled
        self.rank, self.processes = fabric.global_rank, fabric.world_size
        self.device = fabric.device
        self.autocast = fabric.autocast
        self.dtype = next(ee.exits.parameters()).dtype
        if isinstance(data, FeatureCache):
            data.check(ee)
            if labelled:
                data.check_labelled(name)
            if final is not None and not data.keeps_final_inputs:
                raise InputError(
                    "The final classifier cannot be trained on this feature cache, for the logits "
                    "are not what one linear layer answers: train it without a cache first."
                )

    def images(self) -> Iterator[FeatureBatch]:
        """One pass; this process's rows of each batch, as images."""
        for images, labels, total in self._batches():
            yield FeatureBatch((), None, None, labels, total, images)

    def features(self, *, final: bool, trains_final: bool = False) -> Iterator[FeatureBatch]:
        """One pass; this process's rows of each batch, as what exits read.

        Args:
            final: whether the final logits are needed.
            trains_final: whether the final classifier's gradient is.
        """
        if isinstance(self.data, FeatureCache):
            classifier = final_classifier(self.ee)
            yield from self.data.epoch(self.device, self.rank, self.processes, classifier)
            return
        for images, labels, total in self._batches():
            logits = None
            with self.autocast():
                stages = self.ee.exit_features(images)
                with torch.no_grad():
                    pooled = tuple(
                        tuple(values.to(self.dtype) for values in read)
                        for read in pool_features(self.ee, stages)
                    )
                    if final and not trains_final:
                        logits = next(stages)[0].to(self.dtype)
                if trains_final:
                    logits = next(stages)[0].to(self.dtype)
            yield FeatureBatch(pooled, logits, None, labels, total)

    def numbers(self) -> Iterator[FeatureBatch]:
        """One pass over kept features; this process's rows of each batch, by number."""
        assert isinstance(self.data, FeatureCache)
        yield from self.data.numbers(self.device, self.rank, self.processes)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        classes = self.ee.spec.num_classes
        for images, labels in batches(
            self.data, self.name, classes, self.device, labelled=self.labelled
        ):
            mine = slice(self.rank, None, self.processes)
            yield images[mine], labels[mine], len(labels)


class PhaseTrainer:
    """A step under way.

    Attributes:
        done: epochs that are complete.
        best: trained weights after the best epoch.
    """

    def __init__(
        self,
        ee: EarlyExitModule,
        step: Phase,
        final: nn.Module | None,
        *,
        fabric: Fabric,
        costs: Tensor,
        weight: float,
        lr: float | None,
        length: int,
        patience: int | None,
        generator: torch.Generator,
    ) -> None:
        self.ee = ee
        self.step = step
        self.fabric = fabric
        self.costs = costs
        self.weight = weight
        self.lr = step.lr if lr is None else lr
        self.length = length
        self.patience = patience
        self.final = final
        self.generator = generator
        self.branches = list(ee.exits.branches())
        self.state = trained_state(ee, final, backbone="backbone" in step.parameter_groups)
        self.groups = [self._of(turn) for turn in step.updates]
        trained = {id(p): p for groups in self.groups for group in groups for p in group}
        self.parameters = list(trained.values())
        check_trainable(self.parameters, f"step '{step.name}'")
        self.optimizers = [self._optimizers(*groups) for groups in self.groups]
        self.before = snapshot(self.state)
        self.best = snapshot(self.state)
        self.best_loss = math.inf
        self.stale = 0
        self.done = 0
        self.seen = 0
        self.temperatures = torch.ones(ee.num_exits + 1, device=fabric.device)

    def prepare(self, train: Source) -> None:
        """Scales of inputs, temperatures, and gates at their start; weights go on as they are."""
        self._modes(training=False)
        with torch.no_grad():
            if "classifiers" in self.step.parameter_groups or "means" in self.step.parameter_groups:
                pooled, _ = self._some(train, final=False)
                for branch, read in zip(self.branches, pooled, strict=True):
                    branch.fit_input_statistics(*read)
            for branch in self.branches:
                for group in sorted(self.step.parameter_groups):
                    branch.begin_phase(group)
            if "gates" in self.step.parameter_groups:
                self._prepare_gates(train)
                for index, branch in enumerate(self.branches):
                    # So that every outlet has the same share to begin with.
                    branch.reset_gate(self.generator, 1 / (len(self.branches) + 1 - index))
        self.best = snapshot(self.state)

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
            good = snapshot(self.state)
            start = time.perf_counter()
            try:
                train_loss = self._train_epoch(train)
                val_loss = self._loss_on(val) if val is not None else None
            except _NotFinite as error:
                restore(self.state, good if self.done else self.before)
                kept = f"after epoch {self.done}" if self.done else "from before the step"
                raise TrainingError(
                    f"The loss of step '{self.step.name}' is {error.value} in epoch "
                    f"{self.done + 1} ({error.where}): training stopped, and the weights are those "
                    f"{kept}. Look for NaN in the images, or lower lr={self.lr}."
                ) from None
            self.done += 1
            if val_loss is None or val_loss < self.best_loss:
                self.best = snapshot(self.state)
                self.best_loss = math.inf if val_loss is None else val_loss
                self.stale = 0
            else:
                self.stale += 1
            seconds = time.perf_counter() - start
            history.append(Epoch(self.step.name, self.done, train_loss, val_loss, seconds))
            after_epoch()
        if 0 < self.seen <= self.step.period * (len(self.step.updates) - 1):
            logger.warning(
                "Step '%s' is over after %d batches, and a turn is %d: %s did not train. Train "
                "longer, or give a shorter period.",
                self.step.name,
                self.seen,
                self.step.period,
                ", ".join(self.step.updates[-1].parameter_groups),
            )
        restore(self.state, self.best)
        self._modes(training=False)

    def state_dict(self) -> dict[str, Any]:
        """All that another run needs to go on from here."""
        return {
            "state": snapshot(self.state),
            "optimizers": [[one.state_dict() for one in turn] for turn in self.optimizers],
            "best": self.best,
            "best_loss": self.best_loss,
            "stale": self.stale,
            "done": self.done,
            "seen": self.seen,
            "temperatures": self.temperatures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""
        restore(self.state, state["state"])
        for turn, states in zip(self.optimizers, state["optimizers"], strict=True):
            for optimizer, kept in zip(turn, states, strict=True):
                optimizer.load_state_dict(kept)
        self.best = [value.to(self.fabric.device) for value in state["best"]]
        self.best_loss, self.stale, self.done = state["best_loss"], state["stale"], state["done"]
        self.seen = state["seen"]
        self.temperatures = state["temperatures"].to(self.fabric.device)

    def _of(self, turn: Update) -> tuple[list[nn.Parameter], ...]:
        """What a turn moves: what is linear in scaled inputs, exits' bodies, the backbone."""
        linear: dict[int, nn.Parameter] = {}
        bodies: dict[int, nn.Parameter] = {}
        backbone: dict[int, nn.Parameter] = {}
        for group in turn.parameter_groups:
            for parameter in _members(self.ee, group, self.final):
                linear[id(parameter)] = parameter
            if group == "backbone":
                moving = (p for p in self.ee.backbone_parameters() if p.requires_grad)
                backbone.update((id(p), p) for p in moving)
            if group == "classifiers":
                bodies.update((id(p), p) for b in self.branches for p in b.neck_parameters())
        bodies = {key: p for key, p in bodies.items() if key not in backbone}
        shallow = [p for key, p in linear.items() if key not in bodies and key not in backbone]
        return shallow, list(bodies.values()), list(backbone.values())

    def _optimizers(
        self, linear: list[nn.Parameter], bodies: list[nn.Parameter], backbone: list[nn.Parameter]
    ) -> list[Any]:
        """Adam for what is linear, SGD for what is deep."""
        deep = self.lr * self.step.sgd_lr / self.step.lr
        decayed = ((bodies, DECAY), (backbone, 0.0))
        groups = [
            {"params": moved, "initial_lr": deep, "weight_decay": decay}
            for moved, decay in decayed
            if moved
        ]
        made: list[torch.optim.Optimizer] = []
        if linear:
            made.append(torch.optim.Adam([{"params": linear, "initial_lr": self.lr}], self.lr))
        if groups:
            made.append(torch.optim.SGD(groups, deep, momentum=0.9, nesterov=True))
        return [self.fabric.setup_optimizers(one) for one in made]

    def _set_rates(self, batch: int, batches: int | None) -> None:
        """Learning rates of one batch; where their number is not known, of the epoch's middle."""
        within = 0.5 if batches is None else min((batch + 0.5) / batches, 1)
        factor = rate_at((self.done + within) / self.length)
        for optimizer in chain.from_iterable(self.optimizers):
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]

    def _modes(self, *, training: bool) -> None:
        self.ee.train(training and "backbone" in self.step.parameter_groups)
        if "classifiers" in self.step.parameter_groups:
            self.ee.exits.train(training)

    def _stopped(self) -> bool:
        return self.patience is not None and self.stale >= self.patience

    def _train_epoch(self, train: Source) -> float:
        if self.step.parameter_groups == {"means"}:
            self._count_means(train)
            return self._loss_on(train)
        self._modes(training=True)
        mean = _Mean("train")
        batches = count_batches(getattr(train.data, "loader", train.data))
        for batch, (rows, gate_inputs) in enumerate(self._rows(train)):
            self._set_rates(batch, batches)
            turn = (self.seen // self.step.period) % len(self.step.updates)
            parameters = [p for group in self.groups[turn] for p in group]
            with self.fabric.autocast():
                loss = self._loss(rows, gate_inputs, self.step.updates[turn], self._dialled(rows))
                loss = loss * (len(rows.labels) / rows.total)
            self.fabric.backward(loss, inputs=parameters)
            mean.add(self._share(loss.detach(), parameters), rows.total)
            for optimizer in self.optimizers[turn]:
                optimizer.step()
                optimizer.zero_grad()
            self.seen += 1
        return mean.value

    def _share(self, loss: Tensor, parameters: list[nn.Parameter]) -> float:
        """Sums gradients and loss over processes, so that each has those of the whole batch."""
        if self.fabric.world_size > 1:
            for parameter in parameters:
                # A process without rows has a gradient of 0 where others may have none.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients] + [loss.reshape(1)])
            flat = torch.as_tensor(self.fabric.all_reduce(flat, reduce_op="sum"))
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, values in zip(gradients, flat[:-1].split(sizes), strict=True):
                gradient.copy_(values.view_as(gradient))
            loss = flat[-1]
        return float(loss)

    def _prepare_gates(self, train: Source) -> None:
        pooled, (final, labels) = self._some(train, final=True)
        rows = FeatureBatch(tuple(tuple(read) for read in pooled), final, None, labels, len(labels))
        found = gate_inputs_of(self.branches, rows)
        self._check_finite(found.gate_inputs)
        if self.step.temperature_scaled:
            fitted = [fit_temperature(at, labels) for at in found.logits]
            self.temperatures = torch.tensor(fitted, device=final.device, dtype=final.dtype)
        for branch, gate_inputs in zip(self.branches, found.gate_inputs, strict=True):
            branch.fit_gate_statistics(gate_inputs)

    def _some(
        self, train: Source, *, final: bool
    ) -> tuple[list[list[Tensor]], tuple[Tensor, Tensor]]:
        """The first images of all processes: what exits read, final logits, labels."""
        parts: list[FeatureBatch] = []
        count = 0
        for rows in train.features(final=final):
            parts.append(self._relabelled(rows) if final else rows)
            count += rows.total
            if count >= MEASURED_ON:
                break
        widths = [len(tensors) for tensors in parts[0].pooled]
        pooled = [
            [self._gathered([part.pooled[i][j] for part in parts]) for j in range(width)]
            for i, width in enumerate(widths)
        ]
        for tensors in pooled:
            self._check_finite(tensors)
        finals = [part.final for part in parts if part.final is not None]
        labels = self._gathered([part.labels for part in parts])
        return pooled, (self._gathered(finals) if finals else torch.empty(0), labels)

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        return _gather(torch.cat(parts), self.fabric)

    def _check_finite(self, tensors: Iterable[Tensor]) -> None:
        if not all(bool(values.isfinite().all()) for values in tensors):
            raise TrainingError(
                f"The features of step '{self.step.name}' are not finite: nothing was changed. "
                "Look for NaN in the images."
            )

    @torch.no_grad()
    def _count_means(self, train: Source) -> None:
        for rows in train.features(final=self.step.labels == "backbone"):
            rows = self._relabelled(rows)
            for branch, read in zip(self.branches, rows.pooled, strict=True):
                branch.accumulate_class_means(rows.labels, *read)
        for branch in self.branches:
            branch.finish_class_means(self._summed)

    def _summed(self, values: Tensor) -> Tensor:
        if self.fabric.world_size == 1:
            return values
        return torch.as_tensor(self.fabric.all_reduce(values, reduce_op="sum"))

    @torch.no_grad()
    def _loss_on(self, val: Source) -> float:
        self._modes(training=False)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for rows, gate_inputs in self._rows(val):
            with self.fabric.autocast():
                for turn in self.step.updates:
                    loss = self._loss(rows, gate_inputs, turn, self._spread(rows))
                    total += loss.double().cpu() * len(rows.labels) / len(self.step.updates)
            count += rows.total
        mean = _Mean("val")
        mean.add(float(self._summed(total)) / max(count, 1), count)
        return mean.value

    def _rows(self, source: Source) -> Iterator[tuple[FeatureBatch, GateInputs | None]]:
        """Batches, with what gates judge by where nothing else trains."""
        if "backbone" in self.step.parameter_groups:
            yield from ((rows, None) for rows in source.images())
        elif self.step.parameter_groups == {"gates"} and self._gates_are_apart:
            kept = self._kept(source)
            if kept is None:
                for rows in source.features(final=True):
                    yield rows, gate_inputs_of(self.branches, rows)
            else:
                for rows in source.numbers():
                    assert rows.numbers is not None
                    yield rows, kept.at(rows.numbers)
        else:
            trains_final = "final" in self.step.parameter_groups
            for rows in source.features(final=self._needs_final, trains_final=trains_final):
                yield rows, None

    @property
    def _needs_final(self) -> bool:
        objectives = [turn.objective for turn in self.step.updates]
        reads = any(o is not None and o.reads_final for o in objectives)
        return reads or self.step.labels == "backbone"

    def _kept(self, source: Source) -> GateInputs | None:
        """What gates judge by of all samples of a feature cache; None where it is not kept."""
        if not isinstance(source.data, FeatureCache):
            return None
        return gate_inputs_of_cache(self.ee, source.data)

    @property
    def _gates_are_apart(self) -> bool:
        """Whether what gates judge by stays as it is while they train."""
        classifiers = {id(p) for b in self.branches for p in b.classifier_parameters()}
        return not any(id(p) in classifiers for b in self.branches for p in b.gate_parameters())

    def _relabelled(self, rows: FeatureBatch, final: Tensor | None = None) -> FeatureBatch:
        """With the labels that the step learns from."""
        if self.step.labels == "given":
            return rows
        final = rows.final if final is None else final
        assert final is not None
        return replace(rows, labels=final.argmax(1))

    def _dialled(self, rows: FeatureBatch) -> Tensor | None:
        """A weight of the cost for each sample, of the whole batch's draw."""
        if not self.step.random_alpha:
            return None
        drawn = torch.rand(rows.total, generator=self.generator)
        mine = drawn[self.fabric.global_rank :: self.fabric.world_size]
        return mine.to(rows.labels.device)

    def _spread(self, rows: FeatureBatch) -> Tensor | None:
        """Weights of the cost from 0 to 1, the same in each epoch."""
        if not self.step.random_alpha:
            return None
        grid = torch.linspace(0, 1, rows.total)
        mine = grid[self.fabric.global_rank :: self.fabric.world_size]
        return mine.to(rows.labels.device)

    def _loss(
        self,
        rows: FeatureBatch,
        gate_inputs: GateInputs | None,
        turn: Update,
        dialled: Tensor | None,
    ) -> Tensor:
        if not len(rows.labels):
            return torch.stack([p.sum() * 0 for p in self.parameters]).sum()
        objective = SumOfExits() if turn.objective is None else turn.objective
        weight = self.weight if dialled is None else dialled
        with_gates = "gates" in objective.uses
        if gate_inputs is not None:
            at_all = zip(gate_inputs.logits, self.temperatures, strict=True)
            logits = tuple(at / temperature for at, temperature in at_all)
            gates = all_gate_logits(self.branches, gate_inputs.gate_inputs, dialled)
            rows = self._relabelled(rows, gate_inputs.logits[-1])
        elif rows.images is not None:
            found = self.ee.all_exits(rows.images)
            logits, gates = found.logits, found.gate_logits
            rows = self._relabelled(rows, found.logits[-1].detach())
        elif turn.parameter_groups == ("final",):
            inputs = rows.final_inputs
            answer = rows.final if inputs is None or self.final is None else self.final(inputs)
            assert answer is not None
            logits, gates = (answer,), answer.new_empty(len(answer), 0)
        else:
            rows = self._relabelled(rows)
            answers = run_branches(self.branches, rows.pooled)
            classified = [
                branch.classify(state)
                for branch, (state, _, _) in zip(self.branches, answers, strict=True)
            ]
            if (
                "classifiers" not in turn.parameter_groups
                and "ensembles" not in turn.parameter_groups
            ):
                classified = [at.detach() for at in classified]
            logits = (*classified, *([] if rows.final is None else [rows.final]))
            logits = tuple(at / t for at, t in zip(logits, self.temperatures, strict=False))
            gates = classified[0].new_zeros(len(rows.labels), len(self.branches))
            if with_gates:
                gates = all_gate_logits(self.branches, [found for _, _, found in answers], dialled)
        costs = self.costs.to(gates.dtype)
        return objective(BatchOutputs(logits, gates, rows.labels, costs, weight, self._progress))

    @property
    def _progress(self) -> float:
        return min(self.done / max(self.length - 1, 1), 1.0)


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


def trained_state(
    ee: EarlyExitModule, final: nn.Module | None, *, backbone: bool = False
) -> list[Tensor]:
    """Every tensor that a recipe may change.

    Args:
        ee: the network.
        final: the final classifier, where it trains.
        backbone: whether all the rest trains too.
    """
    if backbone:
        return [*ee.parameters(), *ee.buffers()]
    state = [*ee.exits.parameters(), *ee.exits.buffers()]
    if final is not None:
        held = {id(tensor) for tensor in state}
        state += [p for p in final.parameters() if id(p) not in held]
    return state


def _members(ee: EarlyExitModule, group: Group, final: nn.Module | None) -> Iterator[nn.Parameter]:
    """The parameters of a group."""
    if group == "final":
        assert final is not None
        yield from final.parameters()
    elif group == "backbone":
        yield from (p for p in ee.backbone_parameters() if p.requires_grad)
        if final is not None:
            # An encoder's class head is none of its own parameters.
            yield from final.parameters()
    for branch in ee.exits.branches():
        if group == "classifiers":
            yield from branch.classifier_parameters()
        elif group == "ensembles":
            yield from branch.ensemble_parameters()
        elif group == "gates":
            yield from branch.gate_parameters()


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
