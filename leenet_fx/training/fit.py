"""fit: trains the exits of a network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leenet_fx.data.class_names import Names, check_class_names, compare_class_names
from leenet_fx.errors import InputError, TrainingError
from leenet_fx.features.compute_modes import default_modes
from leenet_fx.features.feature_cache import FeatureCache, cache_features
from leenet_fx.keywords import check_keywords
from leenet_fx.methods import Method
from leenet_fx.progress import progress_display, shows_progress
from leenet_fx.storage.config import CONFIG, read_config
from leenet_fx.storage.exits import load, save
from leenet_fx.storage.files import make_folder, remove_leftovers
from leenet_fx.storage.json_files import validated
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.training import checkpoint, distributed
from leenet_fx.training.feature_source import Data, FitData
from leenet_fx.training.metrics import Epoch
from leenet_fx.training.parameters import (
    evaluation_modules,
    restore,
    snapshot,
    trained_state,
)
from leenet_fx.training.plan import Plan, choose_method, make_plan
from leenet_fx.training.sanity import warn_if_folded, warn_if_untrained
from leenet_fx.training.worker import Worker

logger = logging.getLogger("leenet_fx")


@dataclass(frozen=True)
class FitResult:
    """The record of a training run.

    Attributes:
        method: name of the method.
        alpha: cost weight.
        cost: cost kind.
        seed: of everything random.
        options: of the method.
        history: losses of each epoch.
    """

    method: str
    alpha: float
    cost: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@check_keywords
def fit(
    ee: EarlyExitModule,
    train: Iterable[Any] | FeatureCache,
    val: Iterable[Any] | FeatureCache | None = None,
    *,
    calibration: Iterable[Any] | FeatureCache | None = None,
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
    overwrite: bool = False,
    tensorboard: bool = False,
    accelerator: str | None = None,
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str | None = None,
    precision: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FitResult:
    """Train a network with exits by the phases of a method, and set the method's policy.

    If the method freezes the backbone, the backbone runs in evaluation mode, and neither its
    weights nor its BatchNorm statistics change. If it trains the backbone, all modules run in
    training mode but those frozen by the caller: if `ee` is in training mode, every module that is
    in evaluation mode; else every module in which no parameter has `requires_grad`. (As in torch,
    `requires_grad_(False)` alone does not freeze the statistics of a network in training mode.)
    Afterwards `ee` is in evaluation mode, ready to predict. Inference mode, `no_grad` and autocast
    around the call have no effect; `precision` is for the latter.

    Gates are reinitialised from `seed`, so a call with `epochs={"exits": 0}` fits them for another
    α on the same classifiers. A final classifier is trained alone, first, in the coordinates of
    centred and scaled inputs; it keeps its form.

    Args:
        ee: a network with exits.
        train: yields (images (B, …), labels (B,)), read once for each epoch; or a feature cache
            that `cache_features` made of such a loader. Labels are class indices; batches may be
            dictionaries with `pixel_values` or `image` and `labels` or `label`. Methods that learn
            from the backbone alone ("pteenet", "distilled" with mix=1) also take images without
            labels. If its data set names its classes (`classes`, as torchvision's), so does the
            network afterwards, and other data must have the same names in the same order.
        val: likewise, for the validation loss; each phase ends with the weights of its best epoch.
        calibration: likewise, for phases that train gates or ensembles alone; None takes `train`.
            On images that the exits or the backbone have memorised, every exit looks accurate, so
            held-out images are better.
        method: a registered name (see `leenet_fx.list_methods`), or a `Method`, which carries its
            options: `leenet_fx.get_method("pabee", patience=3)`. None takes the method that `ee`
            was attached for or last trained by, else `leenet_fx.methods.DEFAULT`.
        alpha: cost weight, for methods with gates: an α in [0, 1], or for methods with a λ a number
            from 0; None takes the method's own.
        cost: cost kind: "flops", "params" (as LEENet published) or "bytes".
        epochs: for each phase, or by the name of the phase ("exits", "final", "gates", …).
        lr: maximum learning rate of Adam in each phase, after a linear warm-up over the first tenth
            and before a cosine decay to 0; None takes each phase's own. The learning rate of SGD,
            for necks and the backbone, keeps its ratio to it.
        train_final: whether to train the final classifier; None trains it if `attach` replaced it.
        patience: number of epochs without a lower validation loss after which a phase ends.
        cache: whether to run the backbone once and train on its cached features; see
            `cache_features`.
        out: folder for `metrics.csv`, a checkpoint every epoch, and at the end the files of `save`.
        resume: whether to resume from the checkpoint in `out`, if there is one. An interrupted run
            then ends with the weights of an uninterrupted one, provided that the order of `train`
            comes from its own generators or from the global ones of torch, numpy or Python.
            `epochs` may be higher than in the run to resume; a log message explains what changes.
        overwrite: whether to replace a run in `out`. Its network is replaced at the end of this
            one, its checkpoint at the first epoch.
        tensorboard: whether to write TensorBoard events to `out`.
        accelerator: Lightning Fabric's: "cpu", "cuda", …; None takes the device of `ee`.
        devices: Fabric's: how many, or which. Each batch is shared among their processes, so the
            result is that of one device, up to the order of summation; but BatchNorm that is
            trained, and objectives on batch means, are computed on each process's share.
        num_nodes: number of machines, each with `devices` processes that torchrun starts.
        strategy: "ddp": each process holds the network; "fsdp": processes on GPUs share out the
            weights of a frozen backbone, and gather those of each layer while it runs. None takes
            "ddp" if there are several processes.
        precision: "32-true", which None takes, "bf16-mixed", "16-mixed", or "auto": "bf16-mixed" on
            devices with instructions for it. Others emulate it, several times slower than float32.
        seed: of everything random.
        progress: whether to show progress on stderr, as bars on a terminal and else as lines;
            None shows it on a terminal.

    Returns:
        The record of the run, which is also saved in `out`.

    Raises:
        InputError, UnknownNameError: an argument or a batch does not fit; `ee` is unchanged.
        StorageError: `out` cannot be written to; the last checkpoint in it is intact.
        TrainingError: the loss is not finite, or a process was killed; the weights of the last good
            epoch are restored.
    """
    chosen = choose_method(ee, method)
    data = FitData(train, val, calibration)
    class_names = check_class_names(ee, *data.named())
    _check_precision(ee, accelerator)
    plan = make_plan(
        ee,
        data,
        method=chosen,
        alpha=alpha,
        cost=cost,
        epochs=epochs,
        lr=lr,
        train_final=train_final,
        patience=patience,
        seed=seed,
    )
    with default_modes(ee, grad=True):
        return _run(
            ee,
            data,
            plan,
            class_names,
            cache=cache,
            out=out,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
            progress=progress,
        )


def _check_precision(ee: EarlyExitModule, accelerator: str | None) -> None:
    on_cpu = accelerator == "cpu" or (accelerator is None and ee.device.type == "cpu")
    if on_cpu and any(parameter.dtype == torch.float16 for parameter in ee.exits.parameters()):
        raise InputError(
            "Training in float16 is not supported on the CPU, where losses overflow: call "
            "ee.float(), or ee.bfloat16()."
        )


def _run(
    ee: EarlyExitModule,
    data: FitData,
    plan: Plan,
    class_names: Names | None,
    *,
    cache: bool,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    accelerator: str | None,
    devices: int | str | list[int],
    num_nodes: int,
    strategy: str | None,
    precision: str | None,
    progress: bool | None,
) -> FitResult:
    """Carry out a plan; see `fit`."""
    backbone = "backbone" in plan.parameter_groups
    folder = _make_folder(out, resume, overwrite, tensorboard)
    if folder is not None and resume:
        finished = _finished_run(ee, folder, plan, class_names)
        if finished is not None:
            return finished
    fabric = distributed.make_fabric(ee, accelerator, devices, precision, num_nodes, strategy)
    sharded = strategy == "fsdp"
    final = None if plan.final_path is None else ee.get_submodule(plan.final_path)
    result = FitResult(plan.method.name, plan.alpha, plan.cost, plan.seed, plan.options)
    if not plan.trains_final:
        warn_if_untrained(ee, plan.method.name)
    if backbone:
        warn_if_folded(ee, plan.method.name)
    costs = _costs(ee, plan, torch.device("cpu"))
    show = shows_progress(progress)
    with progress_display(show), _restored_on_error(ee, final, backbone):
        if cache and backbone:
            raise InputError(
                f"Method '{plan.method.name}' trains the backbone: cache=True needs a frozen one."
            )
        if sharded and backbone:
            raise InputError(
                f"Method '{plan.method.name}' trains the backbone: strategy='fsdp' needs a frozen "
                "one; pass strategy='ddp'."
            )
        fixed = evaluation_modules(ee)
        ee.eval()
        with _cached(ee, data, cache, labelled=plan.labelled) as sources:
            # Training on cached features does not run the backbone.
            sharded = sharded and not sources.caches()
            work = Worker(sources, plan, costs, folder, resume, tensorboard, show, fixed)
            distributed.run(fabric, ee, plan.final_path, work, result.history, backbone, sharded)
        _record(ee, plan, class_names)
    if folder is not None and fabric.is_global_zero:
        save(ee, folder, fit={**result.to_dict(), "plan": plan.to_dict()}, overwrite=True)
        (folder / checkpoint.FILE).unlink(missing_ok=True)
    return result


def _costs(ee: EarlyExitModule, plan: Plan, device: torch.device) -> torch.Tensor:
    """Return the relative cost of each exit (N+1,) under the method's policy."""
    costs = ee.costs_for(plan.method.policy_for(ee.num_exits), enabled=True)
    return torch.tensor(costs.relative(plan.cost), device=device)


def _record(ee: EarlyExitModule, plan: Plan, class_names: Names | None) -> None:
    """Set the method's policy, and record in the network what was trained."""
    groups = plan.parameter_groups
    policy = plan.policy_for(ee.num_exits)
    if policy is not None:
        ee.policy = policy
    changed = ee.spec.changed
    if "backbone" in groups:
        changed = ("",)
    elif "final" in groups:
        path = str(plan.final_path)
        if not path.startswith("exits.") and path not in changed:
            changed = (*changed, path)
    ee.spec = replace(
        ee.spec,
        changed=changed,
        method=plan.method.config,
        class_names=class_names,
        operating_points=(),
    )


def _make_folder(
    out: str | Path | None, resume: bool, overwrite: bool, tensorboard: bool
) -> Path | None:
    """Make the output folder, if any.

    Raises:
        InputError: it is missing, or holds another run.
        StorageError: it cannot be written to.
    """
    if out is None:
        if resume or overwrite or tensorboard:
            raise InputError("resume, overwrite and tensorboard need out=, the folder to write to.")
        return None
    if resume and overwrite:
        raise InputError("resume=True goes on with a run, and overwrite=True replaces it.")
    folder = Path(out)
    present = [name for name in (CONFIG, checkpoint.FILE) if (folder / name).exists()]
    if present and not resume and not overwrite:
        raise InputError(
            f"'{folder}' holds '{present[0]}' of another run: pass resume=True or overwrite=True, "
            "or choose another folder."
        )
    make_folder(folder)
    remove_leftovers(folder)
    if overwrite:
        (folder / checkpoint.FILE).unlink(missing_ok=True)
    return folder


def _finished_run(
    ee: EarlyExitModule, folder: Path, plan: Plan, class_names: Names | None
) -> FitResult | None:
    """Load the weights and return the record of a finished run; None if there is training to do.

    Raises:
        InputError: the folder is not of `fit`, or of a run with other arguments.
    """
    if (folder / checkpoint.FILE).exists() or not (folder / CONFIG).exists():
        return None
    config = read_config(folder)
    record = config.fit
    if record is None or not isinstance(record.get("plan"), dict):
        raise InputError(f"'{folder}' was not written by fit: choose another folder.")
    result = validated(FitResult, record, folder / CONFIG, "fit")
    former, own = record["plan"], plan.to_dict()
    lengthened = checkpoint.is_lengthened(plan.epochs, former.get("epochs", ()))
    if lengthened:
        former = {**former, "epochs": own["epochs"]}
    checkpoint.check_same_run(folder, own, former)
    if config.class_names is not None and class_names is not None:
        compare_class_names(config.class_names, class_names, f"'{folder}'", "train")
    if lengthened:
        logger.warning(
            "The run in '%s' is finished, with %s epochs. Learning rates depend on the number of "
            "epochs, so all %s are trained from the start; the network in it is replaced then.",
            folder,
            record["plan"]["epochs"],
            own["epochs"],
        )
        return None
    load(folder, ee).eval()
    return result


@contextmanager
def _cached(
    ee: EarlyExitModule, data: FitData, cache: bool, *, labelled: bool
) -> Iterator[FitData]:
    """Yield the data with loaders replaced by feature caches, if requested."""
    made: list[FeatureCache] = []

    def cached(source: Data | None, name: str) -> Data | None:
        if not cache or source is None or isinstance(source, FeatureCache):
            return source
        made.append(cache_features(ee, source, labelled=labelled, name=f"{name} images"))
        return made[-1]

    try:
        train = cached(data.train, "train")
        assert train is not None
        yield FitData(train, cached(data.val, "val"), cached(data.calibration, "calibration"))
    finally:
        for one in made:
            one.close()


@contextmanager
def _restored_on_error(
    ee: EarlyExitModule, final: nn.Module | None, backbone: bool
) -> Iterator[None]:
    """Restore weights, modes and policy on an error; after a TrainingError keep the weights."""
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
