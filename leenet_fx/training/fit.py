"""fit: trains what is new in a network with exits."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError, TrainingError
from leenet_fx.methods import get_method
from leenet_fx.parts.objectives import exit_losses
from leenet_fx.parts.recipes import Step
from leenet_fx.surgery.costs import check_cost_kind
from leenet_fx.surgery.model import EarlyExitModule
from leenet_fx.training.loaders import batches, check_loader
from placement.registry import unknown_name

STANDARDISE_ON = 2048
"""How many training images tell the scale of the gates' inputs."""


@dataclass(frozen=True)
class Epoch:
    """One epoch of one step: mean losses over samples; `val_loss` is None without `val`."""

    step: str
    epoch: int
    train_loss: float
    val_loss: float | None
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """What `fit` did."""

    method: str
    alpha: float
    cost: str
    seed: int
    history: list[Epoch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.enable_grad()
def fit(
    ee: EarlyExitModule,
    train: Iterable[Any],
    val: Iterable[Any] | None = None,
    *,
    method: str = "leenet",
    alpha: float = 0.5,
    cost: str = "flops",
    epochs: int | Mapping[str, int] = 10,
    lr: float | None = None,
    train_final: bool | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FitResult:
    """Trains exits, the final classifier if asked, then all gates together, and opens the gates.

    The backbone is frozen: it runs in evaluation mode, and neither its weights nor its BatchNorm
    statistics change. `ee` is left in evaluation mode, ready to predict. Gates are drawn anew from
    `seed`, so a call with `epochs={"exits": 0}` fits them for another α on the same classifiers.

    Args:
        ee: a network with exits.
        train: yields (images (B, …), labels (B,)); read once for each epoch.
        val: likewise; where given, each step keeps the weights of its best epoch on it.
        method: a registered method.
        alpha: weight of the cost against the error, in [0, 1].
        cost: what counts as cost: "flops", "params" (as LEENet published) or "bytes".
        epochs: for each step, or by step name ("exits", "final", "gates").
        lr: Adam's learning rate at the start of each step, from which it falls to 0 along a cosine;
            None takes each step's own.
        train_final: whether to train the final classifier; None trains it if `attach` replaced it.
        seed: for everything drawn here.
        progress: whether to show progress bars; None shows them on a terminal.

    Raises:
        InputError, UnknownNameError: an argument or a batch does not fit; `ee` is as before.
        TrainingError: the loss is not finite; the weights of the last good epoch are in place.
    """
    recipe = get_method(method)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie in [0, 1], got {alpha!r}.")
    check_cost_kind(cost)
    if lr is not None and (not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
        raise InputError(f"lr must be a positive number, got {lr!r}.")
    check_loader(train, "train")
    if val is not None:
        check_loader(val, "val")
    final = _final_classifier(ee, train_final)
    steps = [step for step in recipe.steps if step.trains != "final" or final is not None]
    lengths = _lengths(epochs, steps, [step.name for step in recipe.steps])
    result = FitResult(method, float(alpha), cost, seed)
    with _restored_on_error(ee, final), _bars(progress) as bar:
        ee.eval()
        policy = ee.policy
        ee.policy = recipe.policy
        costs = torch.tensor(ee.costs.relative(cost), device=_device(ee))
        ee.policy = policy
        generator = torch.Generator().manual_seed(seed)
        for step, length in zip(steps, lengths, strict=True):
            if length:
                training = _Training(ee, step, final, costs, alpha, lr, generator, train)
                training.run(train, val, length, result.history, bar)
        trained = {step.trains for step, length in zip(steps, lengths, strict=True) if length}
        if recipe.policy.reads != "gate" or "gates" in trained:
            ee.policy = recipe.policy
    return result


class _Training:
    """One step of a recipe."""

    def __init__(
        self,
        ee: EarlyExitModule,
        step: Step,
        final: nn.Module | None,
        costs: Tensor,
        alpha: float,
        lr: float | None,
        generator: torch.Generator,
        train: Iterable[Any],
    ) -> None:
        self.ee = ee
        self.step = step
        self.costs = costs
        self.alpha = alpha
        self.lr = step.lr if lr is None else lr
        branches = list(ee.exits.branches())
        self.state = [*ee.exits.parameters(), *ee.exits.buffers()]
        self.state += final.parameters() if final is not None else []
        self.before = _snapshot(self.state)
        if step.trains == "gates":
            self._standardise(train)
            for branch in branches:
                branch.reset_gate(generator)
            groups = [branch.gate_parameters() for branch in branches]
        elif step.trains == "classifiers":
            groups = [branch.classifier_parameters() for branch in branches]
        else:
            assert final is not None
            groups = [list(final.parameters())]
        self.parameters = [p for group in groups for p in group]
        _check_trainable(self.parameters, f"step '{step.name}'")

    def run(
        self,
        train: Iterable[Any],
        val: Iterable[Any] | None,
        length: int,
        history: list[Epoch],
        bar: Callable[[str, float], None],
    ) -> None:
        optimizer = torch.optim.Adam(self.parameters, lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)
        good = _snapshot(self.parameters)
        best, best_loss = good, math.inf
        for epoch in range(length):
            start = time.perf_counter()
            try:
                train_loss = self._train_epoch(train, optimizer)
                val_loss = self._loss_on(val) if val is not None else None
            except _NotFinite as error:
                if epoch:
                    _restore(self.parameters, good)
                else:
                    _restore(self.state, self.before)
                kept = f"after epoch {epoch}" if epoch else "from before the step"
                raise TrainingError(
                    f"The loss of step '{self.step.name}' is {error.value} in epoch {epoch + 1} "
                    f"({error.where}): training stopped, and the weights are those {kept}. "
                    f"Look for NaN in the images, or lower lr={self.lr}."
                ) from None
            schedule.step()
            good = _snapshot(self.parameters)
            if val_loss is None or val_loss < best_loss:
                best, best_loss = good, math.inf if val_loss is None else val_loss
            seconds = time.perf_counter() - start
            history.append(Epoch(self.step.name, epoch + 1, train_loss, val_loss, seconds))
            bar(f"{self.step.name}: loss {train_loss:.4f}", (epoch + 1) / length)
        _restore(self.parameters, best)

    def _train_epoch(self, train: Iterable[Any], optimizer: torch.optim.Optimizer) -> float:
        mean = _Mean("train")
        for images, labels in batches(train, "train", self.ee.spec.num_classes, _device(self.ee)):
            loss = self._loss(images, labels)
            mean.add(loss, len(labels))
            for parameter, gradient in zip(
                self.parameters, torch.autograd.grad(loss, self.parameters), strict=True
            ):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
        return mean.value

    @torch.no_grad()
    def _standardise(self, train: Iterable[Any]) -> None:
        branches = list(self.ee.exits.branches())
        seen: list[list[Tensor]] = [[] for _ in branches]
        count = 0
        for images, _ in batches(train, "train", self.ee.spec.num_classes, _device(self.ee)):
            stages = self.ee.exit_features(images)
            for branch, kept in zip(branches, seen, strict=True):
                kept.append(branch.embed(*next(stages)))
            count += len(images)
            if count >= STANDARDISE_ON:
                break
        embedded = [torch.cat(kept) for kept in seen]
        if not all(bool(values.isfinite().all()) for values in embedded):
            raise TrainingError(
                f"The features of step '{self.step.name}' are not finite: no gate was changed. "
                "Look for NaN in the images."
            )
        for branch, values in zip(branches, embedded, strict=True):
            branch.standardise(values)

    def _loss_on(self, val: Iterable[Any]) -> float:
        mean = _Mean("val")
        with torch.no_grad():
            for images, labels in batches(val, "val", self.ee.spec.num_classes, _device(self.ee)):
                mean.add(self._loss(images, labels), len(labels))
        return mean.value

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        trains = self.step.trains
        stages = self.ee.exit_features(images)
        with torch.no_grad():
            features = [next(stages) for _ in range(self.ee.num_exits)]
            final = next(stages)[0] if trains == "gates" else None
        if trains == "final":
            losses = exit_losses([next(stages)[0]], labels)
            return self.step.loss(losses, losses.new_empty(0, 0), self.costs, self.alpha)
        answers = [
            branch(*read) for branch, read in zip(self.ee.exits.branches(), features, strict=True)
        ]
        gates = torch.stack([gate for _, gate in answers], 1)
        logits = [logits for logits, _ in answers]
        if trains == "gates":
            assert final is not None
            losses = exit_losses([at.detach() for at in logits] + [final], labels)
        else:
            losses = exit_losses(logits, labels)
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

    def add(self, mean: Tensor, count: int) -> None:
        value = float(mean.detach())
        self.batch += 1
        if not math.isfinite(value):
            raise _NotFinite(value, f"{self.name} batch {self.batch}")
        self.total += value * count
        self.count += count

    @property
    def value(self) -> float:
        return self.total / self.count


def _final_classifier(ee: EarlyExitModule, train_final: bool | None) -> nn.Module | None:
    spec = ee.spec
    if train_final is None:
        train_final = spec.classifier_is_new
    if not train_final:
        return None
    if spec.final_classifier is None:
        raise InputError("train_final=True, but the logits do not come from one linear layer.")
    if spec.shares_weights and not spec.classifier_is_new:
        raise InputError(
            "train_final=True would change the caller's model, whose weights are shared: attach "
            "with copy=True."
        )
    final = ee.get_submodule(spec.final_classifier)
    _check_trainable(final.parameters(), f"train_final=True ('{spec.final_classifier}')")
    return final


def _check_trainable(parameters: Iterable[Tensor], owner: str) -> None:
    if not all(parameter.requires_grad for parameter in parameters):
        raise InputError(f"A parameter that {owner} trains has requires_grad=False.")


def _lengths(epochs: int | Mapping[str, int], steps: list[Step], known: list[str]) -> list[int]:
    if isinstance(epochs, Mapping):
        names = [step.name for step in steps]
        for name, length in epochs.items():
            if name not in known:
                raise unknown_name("training step", name, known)
            if length and name not in names:
                raise InputError(
                    f"Step '{name}' has epochs but nothing to train: train_final=True?"
                )
        lengths = [epochs.get(step.name, 10) for step in steps]
    else:
        lengths = [epochs] * len(steps)
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise InputError(f"epochs must be whole numbers from 0, got {length!r}.")
    return lengths


def _device(ee: EarlyExitModule) -> torch.device:
    return next(ee.exits.parameters()).device


def _snapshot(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _restore(parameters: Iterable[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@contextmanager
def _restored_on_error(ee: EarlyExitModule, final: nn.Module | None) -> Iterator[None]:
    """Bad input leaves weights, modes and policy as they were; a failed loss keeps what it had."""
    parameters = [
        *ee.exits.parameters(),
        *ee.exits.buffers(),
        *(final.parameters() if final is not None else ()),
    ]
    values, policy = _snapshot(parameters), ee.policy
    modes = {module: module.training for module in ee.modules()}
    try:
        yield
    except BaseException as error:
        ee.policy = policy
        for module, mode in modes.items():
            module.training = mode
        if not isinstance(error, TrainingError):
            _restore(parameters, values)
        raise


@contextmanager
def _bars(progress: bool | None) -> Iterator[Callable[[str, float], None]]:
    show = sys.stderr.isatty() if progress is None else progress
    if not show:
        yield lambda text, done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(description: str, done: float) -> None:
            step = description.partition(":")[0]
            if step not in tasks:
                tasks[step] = bars.add_task(description, total=1.0)
            bars.update(tasks[step], description=description, completed=done)

        yield update
