"""fit: trains what is new in a network with exits."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from leenet_fx.cost.cost_table import check_cost_kind
from leenet_fx.errors import InputError, TrainingError
from leenet_fx.features.batches import check_loader
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.methods import CUSTOM, DEFAULT, Method, MethodConfig, as_method
from leenet_fx.methods.phases import Phase
from leenet_fx.registry import unknown_name
from leenet_fx.storage.config import CONFIG, read_config
from leenet_fx.storage.exits import load, save
from leenet_fx.storage.files import make_folder, remove_leftovers
from leenet_fx.storage.fingerprint import fingerprint
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training import checkpoint, distributed
from leenet_fx.training.log import Epoch, TensorBoard, write_metrics
from leenet_fx.training.trainer import (
    PhaseTrainer,
    Source,
    check_trainable,
    restore,
    snapshot,
    trained_state,
)

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class FitResult:
    """What `fit` did."""

    method: str
    alpha: float
    cost: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Plan:
    """What a run does, checked; equal plans on equal data end in equal weights."""

    recipe: Method
    method: str
    options: dict[str, Any]
    alpha: float
    cost: str
    lengths: tuple[int, ...]
    lr: float | None
    final_path: str | None
    patience: int | None
    seed: int

    @property
    def steps(self) -> list[tuple[Phase, int]]:
        return list(zip(_steps(self.recipe, self.final_path), self.lengths, strict=True))

    @property
    def parameter_groups(self) -> set[str]:
        """The groups that move."""
        return {group for step, length in self.steps if length for group in step.parameter_groups}


@torch.enable_grad()
def fit(
    ee: EarlyExitModule,
    train: Iterable[Any] | FeatureCache,
    val: Iterable[Any] | FeatureCache | None = None,
    *,
    gates: Iterable[Any] | FeatureCache | None = None,
    method: str | Method | None = None,
    alpha: float | None = None,
    cost: str = "flops",
    epochs: int | Mapping[str, int] = 10,
    lr: float | None = None,
    train_final: bool | None = None,
    patience: int | None = None,
    cache: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    accelerator: str | None = None,
    devices: int | str | list[int] = 1,
    precision: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FitResult:
    """Trains what is new by a method's recipe, and sets its policy.

    Where the recipe freezes the backbone, it runs in evaluation mode, and neither its weights nor
    its BatchNorm statistics change. `ee` is left in evaluation mode, ready to predict. Gates are
    drawn anew from `seed`, so a call with `epochs={"exits": 0}` fits them for another α on the same
    classifiers.

    Args:
        ee: a network with exits.
        train: yields (images (B, …), labels (B,)), read once for each epoch; or what
            `cache_features` made of such a loader. Methods that learn from the backbone take
            images alone too.
        val: likewise; where given, each step keeps the weights of its best epoch on it.
        gates: likewise, what the gates are fitted on; None takes `train`. On images that the
            backbone knows by heart no exit looks risky, so images it has not seen are better.
        method: a registered name (see `leenet_fx.list_methods`), or a `Method`, which carries its
            options: `leenet_fx.get_method("pabee", patience=3)`. None takes the method that `ee`
            was attached for or trained by last, else `leenet_fx.methods.DEFAULT`.
        alpha: weight of the cost against the error, for methods with gates: an α in [0, 1], or for
            methods with a λ a number from 0; None takes the method's own.
        cost: what counts as cost: "flops", "params" (as LEENet published) or "bytes".
        epochs: for each step, or by step name ("exits", "final", "gates", …).
        lr: highest learning rate of each step, Adam's: it rises to it over the first tenth, and
            falls to 0 along a cosine; None takes each step's own. That of what is deep, SGD's,
            keeps its ratio to it.
        train_final: whether to train the final classifier; None trains it if `attach` replaced it.
        patience: a step ends after so many epochs in a row without a better loss on `val`.
        cache: whether to run the backbone once and train on what was kept; see `cache_features`.
        out: folder for `metrics.csv`, a checkpoint every epoch, and at the end what `save` writes.
        resume: whether to go on from the checkpoint in `out`, if there is one; a run that was
            killed ends with the weights of one that was not, if `train` draws its order from
            generators of its own or from torch's, numpy's or Python's global one.
        tensorboard: whether to write TensorBoard's events to `out`.
        accelerator: Lightning Fabric's: "cpu", "cuda", …; None stays where `ee` is.
        devices: Fabric's: how many, or which. Each batch is shared among their processes, so the
            result is that of one, up to the order of summation; but BatchNorm that trains, and
            objectives on batch means, see each process's share.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: for everything drawn here.
        progress: whether to show progress bars; None shows them on a terminal.

    Raises:
        InputError, UnknownNameError: an argument or a batch does not fit; `ee` is as before.
        StorageError: `out` cannot be written to; the last checkpoint in it is intact.
        TrainingError: the loss is not finite; the weights of the last good epoch are in place.
    """
    recipe = _method(ee, method)
    plan = _checked(
        ee,
        recipe,
        train,
        val,
        gates,
        _Plan(
            recipe,
            recipe.name,
            _plain_options(recipe.config.options),
            recipe.check_cost_weight(alpha),
            cost,
            (),
            lr,
            None,
            patience,
            seed,
        ),
        epochs,
        train_final,
    )
    folder = _folder(out, resume, tensorboard)
    if folder is not None and resume:
        finished = _finished(ee, folder, plan)
        if finished is not None:
            return finished
    fabric = distributed.make_fabric(ee, accelerator, devices, precision)
    final = None if plan.final_path is None else ee.get_submodule(plan.final_path)
    result = FitResult(recipe.name, plan.alpha, cost, seed, plan.options)
    backbone = "backbone" in plan.parameter_groups
    made: list[FeatureCache] = []
    with _restored_on_error(ee, final, backbone):
        ee.eval()
        if cache:
            if backbone:
                raise InputError(
                    f"Method '{recipe.name}' trains the backbone: cache=True goes with a frozen one."
                )
            labelled = not recipe.label_free
            train, val, gates = (_cached(ee, data, made, labelled) for data in (train, val, gates))
        try:
            work = partial(
                _work, train, val, gates, plan, folder, resume, tensorboard, _shows(progress)
            )
            distributed.run(fabric, ee, plan.final_path, work, result.history, backbone)
        finally:
            for one in made:
                one.close()
        policy = recipe.policy_for(ee.num_exits)
        if policy.reads != "gate" or "gates" in plan.parameter_groups:
            ee.policy = policy.with_alpha(plan.alpha) if recipe.trade_off == "dial" else policy
        if "final" in plan.parameter_groups:
            _note_changed(ee, str(plan.final_path))
        if backbone:
            ee.spec = replace(ee.spec, changed=("",))
        ee.spec = replace(ee.spec, method=recipe.config)
    if folder is not None and fabric.is_global_zero:
        save(ee, folder, fit={**result.to_dict(), "plan": _plain(plan)})
        (folder / checkpoint.FILE).unlink(missing_ok=True)
    return result


def _method(ee: EarlyExitModule, method: str | Method | None) -> Method:
    """Return the method to train by, and log where it is not the one that `ee` remembers."""
    remembered: MethodConfig | None = ee.spec.method
    if method is None:
        if remembered is not None and remembered.name == CUSTOM:
            raise InputError(
                "This network was attached for a Method that is not registered: pass it as method=."
            )
        return as_method(DEFAULT) if remembered is None else remembered.build()
    chosen = as_method(method)
    if remembered is not None and remembered.name != chosen.name:
        logger.warning(
            "This network was attached for, or last trained by, method %s; it is now trained by %s.",
            remembered,
            chosen.config,
        )
    return chosen


def _work(
    train: Iterable[Any] | FeatureCache,
    val: Iterable[Any] | FeatureCache | None,
    gates: Iterable[Any] | FeatureCache | None,
    plan: _Plan,
    folder: Path | None,
    resume: bool,
    tensorboard: bool,
    show: bool,
    fabric: Fabric,
    ee: EarlyExitModule,
    final: nn.Module | None,
    history: list[Epoch],
) -> None:
    """Every step of the plan, in one of the processes that do it."""
    labelled = not plan.recipe.label_free
    fed = Source(ee, train, "train", fabric, final, labelled)
    gates_fed = fed if gates is None else Source(ee, gates, "gates", fabric, final, labelled)
    held_out = None if val is None else Source(ee, val, "val", fabric, final, labelled)
    caches = [data for data in (train, val, gates) if isinstance(data, FeatureCache)]
    loaders = [getattr(data, "loader", data) for data in (train, val, gates) if data is not None]
    generator = torch.Generator().manual_seed(plan.seed)
    costs = _costs(ee, plan, fabric.device)
    writes = folder is not None and fabric.is_global_zero
    start: dict[str, Any] | None = None
    if folder is not None and resume:
        start = checkpoint.load_checkpoint(folder)
        if start is not None:
            _check_resumable(folder, start, ee, plan)
            history[:] = [Epoch(**epoch) for epoch in start["history"]]
            generator.set_state(start["generator"])
            checkpoint.set_random_state(start["random"], loaders)
            for cache, epochs_read in zip(caches, start["epochs_read"], strict=True):
                cache.epochs_read = epochs_read
    board = TensorBoard(folder) if writes and tensorboard and folder is not None else None
    with _bars(show and fabric.is_global_zero) as bar:
        for index, (step, length) in enumerate(plan.steps):
            if not length or (start is not None and index < start["step"]):
                continue
            feed = gates_fed if step.parameter_groups == {"gates"} else fed
            step_run = PhaseTrainer(
                ee,
                step,
                final,
                fabric=fabric,
                costs=costs,
                weight=plan.alpha,
                lr=plan.lr,
                length=length,
                patience=plan.patience,
                generator=generator,
            )
            if start is not None and index == start["step"]:
                step_run.load_state_dict(start["run"])
            else:
                step_run.prepare(feed)

            def after_epoch(index: int = index, step_run: PhaseTrainer = step_run) -> None:
                epoch = history[-1]
                bar(f"{epoch.step}: loss {epoch.train_loss:.4f}", epoch.epoch / step_run.length)
                if not writes or folder is None:
                    return
                checkpoint.save_checkpoint(
                    folder,
                    {
                        "plan": _plain(plan),
                        "graph": fingerprint(ee),
                        "step": index,
                        "run": step_run.state_dict(),
                        "history": [asdict(epoch) for epoch in history],
                        "generator": generator.get_state(),
                        "random": checkpoint.random_state(loaders),
                        "epochs_read": [cache.epochs_read for cache in caches],
                    },
                )
                write_metrics(folder, history)
                if board is not None:
                    board.add(epoch)

            step_run.run(feed, held_out, history, after_epoch)
    if board is not None:
        board.close()


def _note_changed(ee: EarlyExitModule, path: str) -> None:
    """Remembers that a module of the original's has weights of its own now."""
    if not path.startswith("exits.") and path not in ee.spec.changed:
        ee.spec = replace(ee.spec, changed=(*ee.spec.changed, path))


def _costs(ee: EarlyExitModule, plan: _Plan, device: torch.device) -> torch.Tensor:
    policy = ee.policy
    ee.policy = plan.recipe.policy_for(ee.num_exits)
    costs = torch.tensor(ee.costs.relative(plan.cost), device=device)
    ee.policy = policy
    return costs


def _checked(
    ee: EarlyExitModule,
    recipe: Method,
    train: object,
    val: object,
    gates: object,
    plan: _Plan,
    epochs: int | Mapping[str, int],
    train_final: bool | None,
) -> _Plan:
    recipe.check_parts(ee.spec.branch, ee.spec.branch_options)
    check_cost_kind(plan.cost)
    lr, patience = plan.lr, plan.patience
    if lr is not None and (not isinstance(lr, (int, float)) or not 0 < lr < math.inf):
        raise InputError(f"lr must be a positive number, got {lr!r}.")
    if patience is not None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise InputError(f"patience must be a whole number from 1, got {patience!r}.")
        if val is None:
            raise InputError("patience needs val: it counts epochs without a better loss on it.")
    caches = []
    for name, data in (("train", train), ("val", val), ("gates", gates)):
        if isinstance(data, FeatureCache):
            data.check(ee)
            caches.append(name)
        elif name == "train" or data is not None:
            check_loader(data, name)
    final = _final_classifier(ee, train_final)
    steps = _steps(recipe, final)
    lengths = _lengths(epochs, steps, [step.name for step in recipe.phases])
    plan = replace(plan, lengths=tuple(lengths), final_path=final)
    if "backbone" in plan.parameter_groups:
        _check_backbone(ee, plan, caches)
    return plan


def _steps(recipe: Method, final: str | None) -> list[Phase]:
    """Those of a recipe that have something to train."""
    return [
        step for step in recipe.phases if step.parameter_groups != {"final"} or final is not None
    ]


def _check_backbone(ee: EarlyExitModule, plan: _Plan, caches: list[str]) -> None:
    """Raises InputError or ModeError where a recipe cannot train the backbone."""
    if not ee.backbone_parameters():
        raise InputError("The backbone has no parameter to train.")
    if ee.spec.shares_weights:
        raise InputError(
            f"Method '{plan.method}' trains the backbone, and would change the caller's model, "
            "whose weights are shared: attach with copy=True, or fit with recipe='disjoint'."
        )
    if caches:
        raise InputError(
            f"Method '{plan.method}' trains the backbone, so '{caches[0]}' cannot be kept "
            "features: pass the loader, or fit with recipe='disjoint'."
        )


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    try:
        json.dumps(plain)
    except TypeError as error:
        raise InputError(f"Options of a method must be plain values: {error}.") from error
    return plain


def _final_classifier(ee: EarlyExitModule, train_final: bool | None) -> str | None:
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
    check_trainable(final.parameters(), f"train_final=True ('{spec.final_classifier}')")
    return spec.final_classifier


def _lengths(epochs: int | Mapping[str, int], steps: list[Phase], known: list[str]) -> list[int]:
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
    # Class means are what they are after one pass.
    counted = [step.parameter_groups == {"means"} for step in steps]
    return [min(n, 1) if once else n for n, once in zip(lengths, counted, strict=True)]


def _folder(out: str | Path | None, resume: bool, tensorboard: bool) -> Path | None:
    if out is None:
        if resume or tensorboard:
            raise InputError("resume and tensorboard need out=, the folder to write to.")
        return None
    folder = Path(out)
    held = [name for name in (CONFIG, checkpoint.FILE) if (folder / name).exists()]
    if held and not resume:
        raise InputError(
            f"'{folder}' holds '{held[0]}' of another run: resume=True, or choose another folder."
        )
    make_folder(folder)
    remove_leftovers(folder)
    return folder


def _finished(ee: EarlyExitModule, folder: Path, plan: _Plan) -> FitResult | None:
    """What a run that is over left behind; None where it was not, or never began."""
    if (folder / checkpoint.FILE).exists() or not (folder / CONFIG).exists():
        return None
    kept = read_config(folder).get("fit")
    if not isinstance(kept, dict) or "plan" not in kept:
        raise InputError(f"'{folder}' was not written by fit: choose another folder.")
    checkpoint.check_same_run(folder, _plain(plan), kept["plan"])
    load(folder, ee).eval()
    history = [Epoch(**epoch) for epoch in kept["history"]]
    return FitResult(
        kept["method"], kept["alpha"], kept["cost"], kept["seed"], kept["options"], history
    )


def _check_resumable(
    folder: Path, start: Mapping[str, Any], ee: EarlyExitModule, plan: _Plan
) -> None:
    path = folder / checkpoint.FILE
    checkpoint.check_same_run(path, _plain(plan), start["plan"])
    for expected, found in zip(start["graph"], fingerprint(ee), strict=False):
        if expected != found:
            raise InputError(
                f"'{path}' is of another network: up to '{found['up_to']}' expected "
                f"{expected}, found {found}."
            )


def _plain(plan: _Plan) -> dict[str, Any]:
    kept = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "recipe"}
    return {**kept, "lengths": list(plan.lengths)}


def _cached(ee: EarlyExitModule, data: Any, made: list[FeatureCache], labelled: bool) -> Any:
    if data is None or isinstance(data, FeatureCache):
        return data
    made.append(cache_features(ee, data, labelled=labelled))
    return made[-1]


@contextmanager
def _restored_on_error(
    ee: EarlyExitModule, final: nn.Module | None, backbone: bool
) -> Iterator[None]:
    """Bad input leaves weights, modes and policy as they were; a failed loss keeps what it had."""
    state = trained_state(ee, final, backbone=backbone)
    values, policy = snapshot(state), ee.policy
    modes = {module: module.training for module in ee.modules()}
    try:
        yield
    except BaseException as error:
        ee.policy = policy
        for module, mode in modes.items():
            module.training = mode
        if not isinstance(error, TrainingError):
            restore(state, values)
        raise


def _shows(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@contextmanager
def _bars(show: bool) -> Iterator[Callable[[str, float], None]]:
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
