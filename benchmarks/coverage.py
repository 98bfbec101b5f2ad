"""Checks exits in every torchvision and timm classifier, and writes down what it found.

`python benchmarks/coverage.py` renews benchmarks/results/coverage.json; it can be interrupted, and
takes up where it stopped. `--names 'timm/vit*'` checks some and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import io
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
from leenet_fx.report.results import Criterion, Result

RESULTS = Path(__file__).parent / "results" / "coverage.json"
PARTIAL = Path(__file__).parent / "coverage-partial.jsonl"
SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384)
"""Image sizes to run at, the first that a model takes; 32 for large ones only."""
CLASSES = 10
"""Classes of the head that an encoder is given."""
GAINS = (1.0, 1.5, 2.0, 3.0, 0.5)
"""How much larger the kernels drawn make what they are given; the first that works."""
ROWS, FEWER_ROWS = 8, 4
"""Images in the batch whose samples leave one by one; fewer for large models."""
LARGE = 50_000_000
"""Parameters of a large model."""
MOST_PARAMS = 250_000_000
"""A model with more is run by its smallest sibling: two at a time must fit in 8 GiB."""
TASKS = 100
"""Models after which a process is replaced."""
SAME, ORACLE, ORACLE64 = 1e-5, 2e-4, 1e-6
"""Tolerances, relative to the largest logit: the same operators; smaller batches, which are summed
in another order: some networks of random weights amplify that, and are asked again in float64."""


def check(name: str) -> dict[str, Any]:
    """Every check of one model, as a flat record; `verified` says whether all passed.

    Costs, blocks and time are those of the model as it is built by default, on the meta device;
    what it computes is compared at the smallest image size it takes, with weights drawn at random.
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
        row["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:900]}"
    gc.collect()
    row["verified"] = "failure" not in row
    row["check_s"] = round(time.perf_counter() - start, 1)
    return row


def _family(name: str, model: nn.Module) -> str:
    return f"{name.partition('/')[0]}/{type(model).__module__.rpartition('.')[2]}"


def _on_meta(name: str, **options: Any) -> nn.Module:
    try:
        model = leenet_fx.create_model(name, device="meta", **options)
    except (RuntimeError, NotImplementedError):
        # Some models compute with their weights while they are built.
        model = leenet_fx.create_model(name, **options)
    return model.eval()


def _attach(model: nn.Module, strategy: Any, **options: Any) -> EarlyExitModule:
    """attach without copying weights; an encoder gets a class head."""
    try:
        return leenet_fx.attach(model, strategy, copy=False, **options)
    except leenet_fx.InputError as error:
        if "pass num_classes" not in str(error):
            raise
        return leenet_fx.attach(model, strategy, copy=False, num_classes=CLASSES, **options)


def _timed(model: nn.Module) -> tuple[EarlyExitModule, float]:
    """attach as by default, and its CPU time."""
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
        raise RuntimeError(f"{len(names)} boundaries, refused: {ee.spec.rejected}")
    blocks = timm_blocks(model) if name.startswith("timm/") else []
    found = [_has_boundary(block, names) for block in blocks]
    first = found.index(True) if True in found else 0
    # What comes before the first boundary is the stem.
    missed = [b for b, has in zip(blocks[first:], found[first:], strict=True) if not has]
    if missed:
        raise RuntimeError(f"no boundary for {len(missed)} blocks: {', '.join(missed[:3])}")
    return {
        "captured": ee.spec.tracer,
        "encoder": "final" in ee.exits._modules,
        "attach_s": round(seconds, 3),
        "nodes": len(ee.graph.nodes),
        "image": list(ee.spec.image_shape),
        "candidates": len(names),
        "refused": len(ee.spec.rejected),
        "fine": ee.num_exits,
        "gflops": round(profile.flops / 1e9, 3),
        "blocks": f"{names[0]} … {names[-1]}",
    }


def timm_blocks(model: nn.Module) -> list[str]:
    """The blocks by timm's own grouping of parameters (for layer-wise learning rates).

    A block is the common name of a group's parameters, if the group has two weights or more.
    """
    from timm.models._manipulate import group_with_matcher

    if not hasattr(model, "group_matcher"):
        return []
    weights = [(n, p) for n, p in model.named_parameters() if sum(s > 1 for s in p.shape) >= 2]
    groups = group_with_matcher(weights, model.group_matcher(coarse=False), reverse=False)
    found = []
    for names in list(groups.values())[1:-1]:
        parts = [str(n).split(".") for n in names]
        common = []
        for column in zip(*parts, strict=False):
            if len(set(column)) > 1:
                break
            common.append(column[0])
        if len(names) >= 2 and common and any(map(str.isdigit, ".".join(common))):
            found.append(".".join(common))
    return found


def _has_boundary(block: str, names: Iterable[str]) -> bool:
    return any(
        f"{name}.".startswith(f"{block}.") or f"{block}.".startswith(f"{name}.") for name in names
    )


def _run(name: str, params: int) -> dict[str, Any]:
    run_by = name
    if params > MOST_PARAMS:
        run_by = _smallest_sibling(name)
    model, size = build_small(run_by, SIZES if params > LARGE else SIZES[1:])
    rows = FEWER_ROWS if params > LARGE else ROWS
    images = torch.randn(
        rows, _channels(model), size, size, generator=torch.Generator().manual_seed(0)
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
    config = getattr(model, "default_cfg", None) or {}
    return int(config.get("input_size", (3,))[0])


def _smallest_sibling(name: str) -> str:
    cls = type(_on_meta(name))
    alike = [
        (size, other) for size, other, theirs in _siblings(name.split("_")[0]) if theirs is cls
    ]
    return min(alike)[1]


@cache
def _siblings(stem: str) -> list[tuple[int, str, type]]:
    """Parameters, name and class of every model whose name begins alike."""
    models = ((name, _on_meta(name)) for name in leenet_fx.list_models(f"{stem}*"))
    return [(sum(p.numel() for p in m.parameters()), name, type(m)) for name, m in models]


def build_small(name: str, sizes: Sequence[int]) -> tuple[nn.Module, int]:
    """The model with weights, and the smallest of `sizes` (or its own) that it takes."""
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
            with _NoDrawing():
                return leenet_fx.create_model(name, **options).eval(), size
    raise RuntimeError(f"takes none of {sizes}")


class _NoDrawing(TorchDispatchMode):
    """Zeros where a model would draw large tensors: they are drawn again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name in ("uniform_", "normal_", "erfinv_") and args[0].numel() > 10_000:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def randomise(model: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Draws all weights anew, zeros and ones too, so that no part of the network is without effect.

    Kernels make what they are given `gain` times as large; scales and shifts vary.
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


def _enliven(model: nn.Module, images: Tensor) -> None:
    """Draws weights with which two images get two answers: what is equal otherwise says nothing."""
    for gain in GAINS:
        randomise(model, gain, torch.Generator().manual_seed(0))
        with torch.no_grad():
            made = _output(model(images)).flatten(1)
        if bool(made.isfinite().all()) and _difference(made[:1], made[1:]) > 1e-4:
            return
    raise RuntimeError("the model itself gives all images the same logits, or none that are finite")


def _expected(model: nn.Module, ee: EarlyExitModule, images: Tensor) -> Tensor:
    made = _output(model(images))
    head = ee.exits._modules.get("final")
    return made if head is None else head(made)


def _output(made: Any) -> Tensor:
    while not isinstance(made, Tensor):
        made = made["logits"] if isinstance(made, dict) else made[0]
    return made


def _difference(found: Tensor, expected: Tensor) -> float:
    scale = max(float(expected.abs().max()), 1e-6)
    return float((found - expected).abs().max()) / scale


def _same(model: nn.Module, ee: EarlyExitModule, images: Tensor) -> float:
    expected = _expected(model, ee, images)
    difference = _difference(ee(images), expected)
    if not difference <= SAME:
        raise RuntimeError(f"differs from the original by {difference:.1e} with shut gates")
    return difference


def _oracle(ee: EarlyExitModule, images: Tensor) -> tuple[float, Tensor]:
    """Every exit is left at by some sample, in an order drawn at random."""
    logits = torch.stack(ee.all_exits(images).logits)
    rows, outlets = len(images), ee.num_exits + 1
    order = torch.randperm(outlets, generator=torch.Generator().manual_seed(1))
    order = order.repeat(math.ceil(rows / outlets))
    order = torch.cat([order, order[: -len(order) % rows]])
    worst = 0.0
    for index in order.split(rows):
        found = ee.predict(images, exit_index=index)
        if not torch.equal(found.exit_index, index):
            raise RuntimeError("samples did not leave where they were told to")
        expected = logits[index, torch.arange(rows)]
        worst = max(worst, _difference(found.logits, expected))
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
    found = model.load_state_dict(ee.state_dict(), strict=False)
    if found.missing_keys or not all(key.startswith("exits.") for key in found.unexpected_keys):
        raise RuntimeError("the original does not load the state dict")


def _identical(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def _copies(ee: EarlyExitModule, images: Tensor, index: Tensor) -> None:
    expected = ee.predict(images, exit_index=index).logits
    for how in (_deepcopied, _pickled):
        twin = how(ee)
        if not torch.equal(twin.predict(images, exit_index=index).logits, expected):
            raise RuntimeError(f"{how.__name__}: predicts something else")
        if [n.name for n in twin.graph.nodes] != [n.name for n in ee.graph.nodes]:
            raise RuntimeError(f"{how.__name__}: another graph")
        if twin.costs != ee.costs:
            raise RuntimeError(f"{how.__name__}: other costs")
        del twin


def _tensors(ee: EarlyExitModule) -> list[Tensor]:
    return [*ee.parameters(), *ee.buffers()]


def _deepcopied(ee: EarlyExitModule) -> EarlyExitModule:
    """A deep copy but for the weights, which would double the memory."""
    return deepcopy(ee, {id(tensor): tensor for tensor in _tensors(ee)})


def _pickled(ee: EarlyExitModule) -> EarlyExitModule:
    """Through pickle and back, but for the weights."""
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
    """How far training mode, with the same random numbers, is from the original's."""
    if ee.spec.tracer == "export":
        return "frozen"
    state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    try:
        torch.manual_seed(1)
        expected = _expected(model.train(), ee, images)
        model.load_state_dict(state, strict=False)
        torch.manual_seed(1)
        found = ee.train()(images).logits[-1]
    except (ValueError, RuntimeError) as error:
        # One value a channel, at the smallest size, is too little for BatchNorm.
        return "more than 1 value" if "more than 1 value" in str(error) else str(error)[:80]
    finally:
        model.eval()
        ee.eval()
    return float(f"{_difference(found, expected):.1e}")


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
    """One thread, and no warnings: they are about pretrained weights and input sizes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("leenet_fx").setLevel(logging.ERROR)
    logging.getLogger("fvcore").setLevel(logging.CRITICAL)


def sweep(names: Sequence[str], jobs: int, partial: Path | None) -> list[dict[str, Any]]:
    """Checks `names` in `jobs` processes; `partial` keeps rows for a sweep that is interrupted."""
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
            progress.run_stage(task)
            if not row["verified"]:
                progress.console.print(f"{row['name']}: {row['failure']}", markup=False)
            if partial is not None:
                with partial.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return [rows[name] for name in names]


@cache
def _last_seconds() -> dict[str, float]:
    """How long each model took in the last sweep: the slow ones come last."""
    if not RESULTS.exists():
        return {}
    return {row["name"]: row["check_s"] for row in json.loads(RESULTS.read_text())["rows"]}


def _rows(names: Sequence[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Rows as they come; models that take their process with them (out of memory) fail."""
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
    """One line a family, and what is not verified."""
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
                "by export": sum(row.get("captured") == "export" for row in members),
                "encoders": sum(bool(row.get("encoder")) for row in members),
                "boundaries": _span(candidates),
                "alive at a cut, at most": max((row.get("live", 0) for row in members), default=0),
                "attach s, median": statistics.median(attach) if attach else None,
                "attach s, worst": max(attach, default=None),
                "not verified": "; ".join(failures),
            }
        )
    return table


def _span(values: Sequence[int]) -> str:
    if not values:
        return ""
    return str(min(values)) if min(values) == max(values) else f"{min(values)}–{max(values)}"


def figures(rows: Sequence[dict[str, Any]]) -> list[Criterion]:
    """What was asked for."""
    found = []
    for library, asked in (("torchvision", 1.0), ("timm", 0.995)):
        ours = [row["verified"] for row in rows if row["name"].startswith(library)]
        share = sum(ours) / max(len(ours), 1)
        words = f"{100 * asked:g} % of {len(ours)}"
        found.append(
            Criterion(f"{library} verified: {sum(ours)}", 100 * share, "%", words, share >= asked)
        )
    attach = [row["attach_s"] for row in rows if "attach_s" in row]
    median, worst = statistics.median(attach), max(attach)
    found.append(
        Criterion("attach without weight copies, median", median, "s", "≤ 0.5", median <= 0.5)
    )
    found.append(Criterion("attach without weight copies, worst", worst, "s", "≤ 15", worst <= 15))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep; returns 1 where a model named on the command line is not verified."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", help="patterns, such as 'timm/vit*'")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--fresh", action="store_true", help="do not take up an interrupted sweep")
    options = parser.parse_args(arguments)
    names = leenet_fx.list_models()
    if options.names:
        names = [name for name in names if any(fnmatch(name, p) for p in options.names)]
        rows = sweep(names, options.jobs, None)
        print(json.dumps(rows, indent=2))
        return 0 if all(row["verified"] for row in rows) else 1
    if options.fresh:
        PARTIAL.unlink(missing_ok=True)
    start = time.perf_counter()
    rows = sweep(names, options.jobs, PARTIAL)
    hours = (time.perf_counter() - start) / 3600
    result = Result("python benchmarks/coverage.py", rows, figures(rows), environment())
    result.write(RESULTS, "Coverage: every torchvision and timm classifier", summarise(rows))
    PARTIAL.unlink(missing_ok=True)
    print(f"{sum(row['verified'] for row in rows)} of {len(rows)} verified, {hours:.1f} h")
    return 0


if __name__ == "__main__":
    sys.exit(main())
