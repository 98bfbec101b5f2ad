"""Check exits in every torchvision and timm classifier, and every architecture of transformers.

`python benchmarks/coverage.py` renews benchmarks/results/coverage.json and resumes an interrupted
run. `--names 'timm/vit*'` checks some models and writes nothing; with `--update`, their rows
replace those of the results. Architectures of transformers are checked at small configurations.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import logging
import math
import multiprocessing
import pickle
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import leenet_fx
from leenet_fx import EarlyExitModule
from leenet_fx.environment import environment
from leenet_fx.graph.hf_models import image_shape
from leenet_fx.report.results import Criterion, Result

RESULTS = Path(__file__).parent / "results" / "coverage.json"
PACKAGES = Path(torch.__file__).parents[1]
PARTIAL = Path(__file__).parent / "coverage-partial.jsonl"
SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)
"""Image sizes; the first that a model accepts is used, 32 for large models only."""
CLASSES = 10
"""Number of classes of the classifier added to an encoder."""
GAINS = (1.0, 1.5, 2.0, 3.0, 0.5)
"""Gains of the random initialisation; the first that gives distinct finite logits is used."""
BATCH, LARGE_BATCH = 8, 4
"""Batch sizes at which samples exit at different exits; the smaller for large models."""
LARGE = 50_000_000
"""Number of parameters of a large model."""
MAX_PARAMS = 250_000_000
"""Of a larger model the smallest of the same class is run: two must fit in 8 GiB."""
SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "n_layer": 4,
    "n_embd": 96,
    "n_head": 4,
    "num_self_attends_per_block": 4,
    "num_latents": 64,
    "d_latents": 256,
}
"""Options of small configurations of transformers, where the architecture has them."""
EFFICIENTNET = {
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "hidden_dim": 1280,
    "image_size": 224,
}
"""Options of EfficientNet's smallest configuration; the default is its largest."""
TASKS = 100
"""Number of models after which a process is replaced."""
SAME, ORACLE, ORACLE64 = 1e-5, 2e-4, 1e-6
"""Tolerances relative to the largest logit: for the same operators; for smaller batches, whose sums
have another order; and for these in float64, since some networks with random weights amplify
rounding errors."""


def check(name: str) -> dict[str, Any]:
    """Return the results of all checks of one model as a flat record; `verified` if all passed.

    Costs, blocks and time are those of the model with its default options, on the meta device.
    Outputs are compared at the smallest image size that it accepts, with random weights.

    Args:
        name: of the model, with its library.
    """
    row: dict[str, Any] = {"name": name}
    start = time.perf_counter()
    try:
        model = _on_meta(name)
        row["class"] = type(model).__name__
        row["family"] = _family(name, model)
        row["params"] = sum(p.numel() for p in model.parameters())
        row |= _inspect(name, model)
        del model
        row |= _run(name, row["params"])
    except Exception as error:
        # Messages name files of this machine.
        message = " ".join(str(error).split()).replace(f"{PACKAGES}/", "")
        row["failure"] = f"{type(error).__name__}: {message[:900]}"
    gc.collect()
    row["verified"] = "failure" not in row
    row["check_s"] = round(time.perf_counter() - start, 1)
    return row


def _family(name: str, model: nn.Module) -> str:
    return f"{name.partition('/')[0]}/{type(model).__module__.rpartition('.')[2]}"


@cache
def small_configuration(name: str) -> dict[str, Any]:
    """Return options of a small configuration of an architecture of transformers."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[name.partition("/")[2]]()
    vision = getattr(config, "vision_config", None)
    options = _smaller(config)
    if hasattr(vision, "to_dict"):
        options["vision_config"] = {**vision.to_dict(), **_smaller(vision)}
    return {**options, "num_labels": CLASSES}


def _smaller(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    if "depth_coefficient" in values:
        return dict(EFFICIENTNET)
    size = values.get("image_size")
    options = {"image_size": [224, 224]} if isinstance(size, list) and max(size) > 256 else {}
    depths = getattr(config, "depths", None)
    if isinstance(depths, (list, tuple)):
        return {**options, "depths": [min(depth, 2) for depth in depths]}
    return {**options, **{k: v for k, v in SMALL.items() if isinstance(values.get(k), int)}}


def transformers_blocks(model: nn.Module) -> list[str]:
    """Return the items, with two weights or more each, of the innermost lists of such modules."""
    lists: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            own = not any(type(item).__module__.startswith("torch.nn") for item in module)
            weights = [sum(p.ndim >= 2 for p in item.parameters()) for item in module]
            if own and len({type(item) for item in module}) == 1 and min(weights) >= 2:
                lists[path] = [f"{path}.{i}" for i in range(len(module))]
    return [
        block
        for path, blocks in lists.items()
        if not any(other.startswith(f"{path}.") for other in lists)
        for block in blocks
    ]


def _on_meta(name: str, **options: Any) -> nn.Module:
    if name.startswith("hf/"):
        options = small_configuration(name)
    try:
        model = leenet_fx.create_model(name, device="meta", **options)
    except (RuntimeError, NotImplementedError):
        # The constructors of some models compute with weights.
        model = leenet_fx.create_model(name, **options)
    return model.eval()


def _attach(model: nn.Module, strategy: Any, **options: Any) -> EarlyExitModule:
    """Attach exits without copying weights; an encoder gets a classifier."""
    try:
        return leenet_fx.attach(model, strategy, copy=False, **options)
    except leenet_fx.InputError as error:
        if "pass num_classes" not in str(error):
            raise
        return leenet_fx.attach(model, strategy, copy=False, num_classes=CLASSES, **options)


def _timed(model: nn.Module) -> tuple[EarlyExitModule, float]:
    """Attach exits with default options, and return the CPU time too."""
    options: dict[str, Any] = {}
    while True:
        start = time.process_time()
        try:
            ee = leenet_fx.attach(model, copy=False, **options)
        except leenet_fx.InputError as error:
            if options or "pass num_classes" not in str(error):
                raise
            options["num_classes"] = CLASSES
        else:
            return ee, time.process_time() - start


def _inspect(name: str, model: nn.Module) -> dict[str, Any]:
    ee, seconds = _timed(model)
    profile = ee.spec.profile
    names = [candidate.name for candidate in profile.candidates]
    if len(names) < 2:
        raise RuntimeError(f"{len(names)} boundaries, rejected: {ee.spec.rejected}")
    blocks = timm_blocks(model) if name.startswith("timm/") else []
    if name.startswith("hf/"):
        blocks = transformers_blocks(model)
    covered = [_has_boundary(block, names) for block in blocks]
    first = covered.index(True) if True in covered else 0
    # Blocks before the first boundary belong to the stem.
    missed = [b for b, has in zip(blocks[first:], covered[first:], strict=True) if not has]
    if missed:
        raise RuntimeError(f"no boundary for {len(missed)} blocks: {', '.join(missed[:3])}")
    return {
        "tracer": ee.spec.tracer,
        "encoder": "final" in ee.exits._modules,
        "attach_s": round(seconds, 3),
        "nodes": len(ee.graph.nodes),
        "image": list(ee.spec.image_shape),
        "candidates": len(names),
        "rejected": len(ee.spec.rejected),
        "fine": ee.num_exits,
        "gflops": round(profile.flops / 1e9, 3),
        "blocks": f"{names[0]} … {names[-1]}",
    }


def timm_blocks(model: nn.Module) -> list[str]:
    """Return the blocks by timm's grouping of parameters for layer-wise learning rates.

    A block is the common prefix of the parameters' names in a group of at least two weights.
    """
    from timm.models._manipulate import group_with_matcher

    if not hasattr(model, "group_matcher"):
        return []
    weights = [(n, p) for n, p in model.named_parameters() if sum(s > 1 for s in p.shape) >= 2]
    groups = group_with_matcher(weights, model.group_matcher(coarse=False), reverse=False)
    blocks = []
    for names in list(groups.values())[1:-1]:
        parts = [str(n).split(".") for n in names]
        common = []
        for column in zip(*parts, strict=False):
            if len(set(column)) > 1:
                break
            common.append(column[0])
        if len(names) >= 2 and common and any(map(str.isdigit, ".".join(common))):
            blocks.append(".".join(common))
    return blocks


def _has_boundary(block: str, names: Iterable[str]) -> bool:
    return any(
        f"{name}.".startswith(f"{block}.") or f"{block}.".startswith(f"{name}.") for name in names
    )


def _run(name: str, params: int) -> dict[str, Any]:
    run_by = name
    if params > MAX_PARAMS:
        run_by = _smallest_sibling(name)
    model, size = build_small(run_by, SIZES if params > LARGE else SIZES[1:])
    batch_size = LARGE_BATCH if params > LARGE else BATCH
    images = torch.randn(
        batch_size, _channels(model), size, size, generator=torch.Generator().manual_seed(0)
    )
    _enliven(model, images[:2])
    ee = _attach(model, "every", example_inputs=images[:1])
    row: dict[str, Any] = {"run_at": size}
    if run_by != name:
        row["run_by"] = run_by
    row["every"] = ee.num_exits
    row["live"] = max(len(cut.live) for cut in ee.spec.cuts)
    with torch.no_grad():
        row["same"] = max(_same(model, ee, images[:batch]) for batch in (1, 2))
        row["oracle"], index = _oracle(ee, images)
        if row["oracle"] > ORACLE:
            again = _oracle(deepcopy(ee).double(), images.double())[0]
            row["oracle_float64"] = again
            if not again <= ORACLE64:
                raise RuntimeError(
                    f"differs from its oracle by {row['oracle']:.1e}, in float64 {again:.1e}"
                )
        _keys(model, ee)
        _copies(ee, images[:2], index[:2])
        row["training"] = _training(model, ee, images[:3])
    row["gflops_run"], row["gflops_fvcore"] = _flops(model, ee, images[:1])
    return row


def _channels(model: nn.Module) -> int:
    configured = image_shape(model)
    if configured is not None:
        return configured[0]
    config = getattr(model, "default_cfg", None) or {}
    return int(config.get("input_size", (3,))[0])


def _smallest_sibling(name: str) -> str:
    cls = type(_on_meta(name))
    same_class = [
        (size, other) for size, other, theirs in _siblings(name.split("_")[0]) if theirs is cls
    ]
    return min(same_class)[1]


@cache
def _siblings(stem: str) -> list[tuple[int, str, type]]:
    """Return the number of parameters, name and class of every model with the same first word."""
    models = ((name, _on_meta(name)) for name in leenet_fx.list_models(f"{stem}*"))
    return [(sum(p.numel() for p in m.parameters()), name, type(m)) for name, m in models]


def build_small(name: str, sizes: Sequence[int]) -> tuple[nn.Module, int]:
    """Return the model with weights, and the smallest of `sizes`, or its default, it accepts."""
    if name.startswith("hf/"):
        model = leenet_fx.create_model(name, **small_configuration(name)).eval()
        configured = image_shape(model)
        return model, 224 if configured is None else configured[1]
    default = getattr(_on_meta(name), "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for size in (*(s for s in sizes if s < default), default):
        for options in ({"img_size": size}, {"image_size": size}, {}):
            try:
                model = _on_meta(name, **options)
                with torch.no_grad(), torch.device("meta"):
                    for batch in (1, 2):
                        model.to("meta")(torch.empty(batch, _channels(model), size, size))
            except Exception:
                continue
            with _NoInitialisation():
                return leenet_fx.create_model(name, **options).eval(), size
    raise RuntimeError(f"accepts none of {sizes}")


class _NoInitialisation(TorchDispatchMode):
    """Zeros instead of the random initialisation of large tensors, which `randomise` replaces."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ("uniform_", "normal_", "erfinv_") and args[0].numel() > 10_000:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def randomise(model: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Initialise all weights at random, so that every part of the network affects its output.

    Args:
        model: changed in place.
        gain: factor by which a layer scales the standard deviation of its inputs.
        generator: of random numbers.
    """
    noise = torch.randn(1 << 20, generator=generator)
    for parameter in model.parameters():
        if parameter.ndim >= 2 and sum(s > 1 for s in parameter.shape) >= 2:
            fan_in = parameter[0].numel()
            scale = gain / math.sqrt(max(fan_in, 1))
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), noise.numel()):
                part = flat[start : start + noise.numel()]
                part.copy_(noise[: part.numel()] * scale)
        elif bool((parameter == 0).all()):
            parameter.uniform_(-0.2, 0.2, generator=generator)
        else:
            parameter.uniform_(0.6, 1.4, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.6, 1.4, generator=generator)


def initialisations(model: nn.Module, images: Tensor, seeds: int = 1) -> Iterator[Tensor]:
    """Initialise a model at random again and again, and yield its logits for images.

    Initialisations by which the first two images have the same logits, or infinite ones, are
    passed over.
    """
    for gain, seed in itertools.product(GAINS, range(seeds)):
        randomise(model, gain, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = _output(model(images)).flatten(1)
        if bool(logits.isfinite().all()) and _difference(logits[:1], logits[1:2]) > 1e-4:
            yield logits


def _enliven(model: nn.Module, images: Tensor) -> None:
    """Initialise a model so that two images have different logits."""
    if next(initialisations(model, images), None) is None:
        raise RuntimeError("the model itself has the same logits for all images, or infinite ones")


def _expected(model: nn.Module, ee: EarlyExitModule, images: Tensor) -> Tensor:
    output = _output(model(images))
    classifier = ee.exits._modules.get("final")
    return output if classifier is None else classifier(output)


def _output(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        if isinstance(value, dict):
            value = value["logits"] if "logits" in value else next(iter(value.values()))
        else:
            value = value[0]
    return value


def _difference(found: Tensor, expected: Tensor) -> float:
    scale = max(float(expected.abs().max()), 1e-6)
    return float((found - expected).abs().max()) / scale


def _same(model: nn.Module, ee: EarlyExitModule, images: Tensor) -> float:
    expected = _expected(model, ee, images)
    difference = _difference(ee(images), expected)
    if not difference <= SAME:
        raise RuntimeError(
            f"differs from the original by {difference:.1e} with early exits disabled"
        )
    return difference


def _oracle(ee: EarlyExitModule, images: Tensor) -> tuple[float, Tensor]:
    """Compare samples that exit at every exit, in random order, with the outputs of all exits."""
    logits = torch.stack(ee.all_exits(images).logits)
    batch, classifiers = len(images), ee.num_exits + 1
    order = torch.randperm(classifiers, generator=torch.Generator().manual_seed(1))
    order = order.repeat(math.ceil(batch / classifiers))
    order = torch.cat([order, order[: -len(order) % batch]])
    worst = 0.0
    for index in order.split(batch):
        prediction = ee.predict(images, exit_index=index)
        if not torch.equal(prediction.exit_index, index):
            raise RuntimeError("samples did not exit at the given exits")
        expected = logits[index, torch.arange(batch)]
        worst = max(worst, _difference(prediction.logits, expected))
    return worst, index


def _keys(model: nn.Module, ee: EarlyExitModule) -> None:
    theirs = model.state_dict()
    ours = {key: v for key, v in ee.state_dict().items() if not key.startswith("exits.")}
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"keys differ: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    if not all(_identical(ours[key], theirs[key]) for key in theirs):
        raise RuntimeError("values differ")
    if ee.load_state_dict(theirs, strict=False).unexpected_keys:
        raise RuntimeError("the original's state dict does not load")
    keys = model.load_state_dict(ee.state_dict(), strict=False)
    if keys.missing_keys or not all("exits." in key for key in keys.unexpected_keys):
        raise RuntimeError("the original does not load the state dict")


def _identical(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def _copies(ee: EarlyExitModule, images: Tensor, index: Tensor) -> None:
    expected = ee.predict(images, exit_index=index).logits
    for copy in (_deepcopied, _pickled):
        twin = copy(ee)
        if not torch.equal(twin.predict(images, exit_index=index).logits, expected):
            raise RuntimeError(f"{copy.__name__}: predicts other logits")
        if [n.name for n in twin.graph.nodes] != [n.name for n in ee.graph.nodes]:
            raise RuntimeError(f"{copy.__name__}: another graph")
        if twin.costs != ee.costs:
            raise RuntimeError(f"{copy.__name__}: other costs")
        del twin


def _tensors(ee: EarlyExitModule) -> list[Tensor]:
    return [*ee.parameters(), *ee.buffers()]


def _deepcopied(ee: EarlyExitModule) -> EarlyExitModule:
    """Return a deep copy that shares the weights, to save memory."""
    return deepcopy(ee, {id(tensor): tensor for tensor in _tensors(ee)})


def _pickled(ee: EarlyExitModule) -> EarlyExitModule:
    """Return a pickled and unpickled copy that shares the weights."""
    tensors = _tensors(ee)
    position = {id(tensor): index for index, tensor in enumerate(tensors)}
    with io.BytesIO() as file:
        pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = lambda value: position.get(id(value))
        pickler.dump(ee)
        file.seek(0)
        unpickler = pickle.Unpickler(file)
        unpickler.persistent_load = tensors.__getitem__
        return unpickler.load()


def _training(model: nn.Module, ee: EarlyExitModule, images: Tensor) -> float | str:
    """Return the difference from the original in training mode, with the same random numbers."""
    if ee.spec.tracer == "export":
        return "frozen"
    state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    try:
        torch.manual_seed(1)
        expected = _expected(model.train(), ee, images)
        model.load_state_dict(state, strict=False)
        torch.manual_seed(1)
        logits = ee.train()(images).logits[-1]
    except (ValueError, RuntimeError) as error:
        # BatchNorm needs more than one value per channel, which the smallest size may not give.
        return "more than 1 value" if "more than 1 value" in str(error) else str(error)[:80]
    finally:
        model.eval()
        ee.eval()
    return float(f"{_difference(logits, expected):.1e}")


def _flops(model: nn.Module, ee: EarlyExitModule, image: Tensor) -> tuple[float, float | None]:
    from fvcore.nn import FlopCountAnalysis

    ours = round(ee.spec.profile.flops / 1e9, 4)
    try:
        analysis = FlopCountAnalysis(model, image)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return ours, round(2 * analysis.total() / 1e9, 4)
    except Exception:
        return ours, None


def quiet() -> None:
    """Use one thread, and disable warnings about pretrained weights and input sizes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("leenet_fx").setLevel(logging.ERROR)
    logging.getLogger("fvcore").setLevel(logging.CRITICAL)


def sweep(names: Sequence[str], jobs: int, partial: Path | None) -> list[dict[str, Any]]:
    """Check models in parallel.

    Args:
        names: of the models.
        jobs: number of processes.
        partial: file of the rows measured so far, from which an interrupted run resumes; or None.

    Returns:
        A row for each name, in the same order.
    """
    rows: dict[str, dict[str, Any]] = {}
    if partial is not None and partial.exists():
        rows = {row["name"]: row for row in map(json.loads, partial.read_text().splitlines())}
    todo = [name for name in names if name not in rows]
    todo.sort(key=lambda name: _last_seconds().get(name, 0.0))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("models", total=len(names), completed=len(names) - len(todo))
        for row in _rows(todo, jobs):
            rows[row["name"]] = row
            progress.advance(task)
            if not row["verified"]:
                progress.console.print(f"{row['name']}: {row['failure']}", markup=False)
            if partial is not None:
                with partial.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [rows[name] for name in names]


@cache
def _last_seconds() -> dict[str, float]:
    """Return the seconds of each model in the committed sweep, by which models are ordered."""
    if not RESULTS.exists():
        return {}
    return {row["name"]: row["check_s"] for row in json.loads(RESULTS.read_text())["rows"]}


def _rows(names: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Yield rows as they are finished; a model whose process is killed (memory) is not verified."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(names))
    while waiting:
        running: dict[Future[dict[str, Any]], str] = {}
        with ProcessPoolExecutor(jobs, context, quiet, max_tasks_per_child=TASKS) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        name = waiting.pop()
                        running[pool.submit(check, name)] = name
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        row = future.result()
                        del running[future]
                        yield row
            except BrokenProcessPool:
                failure = "its process was killed"
                for name in running.values():
                    yield {"name": name, "verified": False, "failure": failure}


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per family, with the models that are not verified."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row.get("family", row["name"]), []).append(row)
    table = []
    for family, members in sorted(families.items()):
        attach = [row["attach_s"] for row in members if "attach_s" in row]
        candidates = [row["candidates"] for row in members if "candidates" in row]
        failures = [f"{r['name']}: {r['failure']}" for r in members if not r["verified"]]
        table.append(
            {
                "family": family,
                "models": len(members),
                "verified": sum(row["verified"] for row in members),
                "by export": sum(_tracer(row) == "export" for row in members),
                "encoders": sum(bool(row.get("encoder")) for row in members),
                "boundaries": _span(candidates),
                "tensors at a cut, at most": max(
                    (row.get("live", 0) for row in members), default=0
                ),
                "attach s, median": statistics.median(attach) if attach else None,
                "attach s, worst": max(attach, default=None),
                "not verified": "; ".join(failures),
            }
        )
    return table


def _tracer(row: dict[str, Any]) -> str | None:
    """Return the tracer of a row; results of schema 1 call it `captured`."""
    return row.get("tracer", row.get("captured"))


def _span(values: Sequence[int]) -> str:
    if not values:
        return ""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def figures(rows: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return the criteria and whether they are met."""
    criteria = []
    for library, required in (("torchvision", 1.0), ("timm", 0.995), ("hf", 0.95)):
        ours = [row["verified"] for row in rows if row["name"].startswith(library)]
        share = sum(ours) / max(len(ours), 1)
        target = f"{100 * required:g} % of {len(ours)}"
        name = f"{library} verified: {sum(ours)}"
        criteria.append(Criterion(name, 100 * share, "%", target, share >= required))
    theirs = [_tracer(row) == "fx" for row in rows if row["name"].startswith("hf/")]
    if theirs:
        share = sum(theirs) / len(theirs)
        criteria.append(Criterion("hf by torch.fx", 100 * share, "%", "90 %", share >= 0.9))
    attach = [row["attach_s"] for row in rows if "attach_s" in row]
    median, worst = statistics.median(attach), max(attach)
    criteria.append(
        Criterion("attach without weight copies, median", median, "s", "≤ 0.5", median <= 0.5)
    )
    criteria.append(
        Criterion("attach without weight copies, worst", worst, "s", "≤ 15", worst <= 15)
    )
    return criteria


def update(rows: Sequence[dict[str, Any]]) -> None:
    """Replace rows of the committed results, or add them; each has its own date and torch."""
    committed = json.loads(RESULTS.read_text())
    now = environment()
    measured = {"date": now["date"], "torch": now["torch"]}
    merged = {row["name"]: row for row in committed["rows"]}
    merged |= {row["name"]: {**row, **measured} for row in rows}
    names = sorted(merged, key=lambda name: (name.startswith("hf/"), name))
    _write([merged[name] for name in names], committed["environment"])


def _write(rows: Sequence[dict[str, Any]], measured_in: dict[str, Any]) -> None:
    result = Result("python benchmarks/coverage.py", rows, figures(rows), measured_in)
    checked = sum(row["name"].startswith("hf/") for row in rows)
    known = len(leenet_fx.list_models("hf/*"))
    title = (
        "Coverage: every torchvision and timm classifier, and "
        f"{checked} of {known} architectures of transformers"
    )
    result.write(RESULTS, title, summarise(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; return 1 if a model named on the command line is not verified."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", help="patterns, such as 'timm/vit*'")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted run")
    parser.add_argument("--update", action="store_true", help="with --names, keep other rows")
    options = parser.parse_args(arguments)
    names = [*leenet_fx.list_models(), *leenet_fx.list_models("hf/*")]
    if options.names:
        names = [name for name in names if any(fnmatch(name, p) for p in options.names)]
        rows = sweep(names, options.jobs, PARTIAL if options.update else None)
        if options.update:
            update(rows)
            PARTIAL.unlink()
        print(json.dumps(rows, indent=2))
        return 0 if all(row["verified"] for row in rows) else 1
    if options.fresh:
        PARTIAL.unlink(missing_ok=True)
    start = time.perf_counter()
    rows = sweep(names, options.jobs, PARTIAL)
    hours = (time.perf_counter() - start) / 3600
    _write(rows, environment())
    PARTIAL.unlink(missing_ok=True)
    print(f"{sum(row['verified'] for row in rows)} of {len(rows)} verified, {hours:.1f} h")
    return 0


if __name__ == "__main__":
    sys.exit(main())
