"""Time, size and coverage of exported networks.

    python benchmarks/export.py [--part time|export|coverage] [--format NAME]… [--limit N]

Part `time`: a ResNet-18 at 224 px with exits after layer1, layer2 and layer3, on one thread, beside
the backbone exported to the same runtime; in 8-bit integers, beside the backbone in floats. Each
cell runs both in turn; its ratio is that of the medians of CPU times, which other load on the
machine affects less than times of the clock. Part `coverage`: the smallest model of each family of
torchvision and timm, at the smallest image size it accepts, is exported to `onnx` with one exit in
the middle and verified; weights are random, drawn again if PyTorch's own results in 32 and 64 bits
differ by more than a millionth.

Rows are added to benchmarks/results/export.json one by one; those that are there are not repeated.
Part `export` only repeats the exports of part `time`, and renews the seconds that they take, by the
clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from coverage import (
    SIZES,
    _attach,
    _channels,
    _difference,
    _output,
    build_small,
    initialisations,
)
from torch import nn

import leenet_fx
from leenet_fx import EarlyExitModule, MaxProbability, NeverExit
from leenet_fx.environment import environment
from leenet_fx.export.formats import Runner, get_format
from leenet_fx.export.stage_modules import export_plan
from leenet_fx.export.verify import BATCH_SIZES, LARGE_BATCH, SCALES, thresholds_for
from leenet_fx.report.results import Criterion, Result

RESULT = Path(__file__).parent / "results" / "export.json"
COVERAGE = RESULT.with_name("coverage.json")
COMMAND = "python benchmarks/export.py"
ROUNDS = 30
SEEDS = 4
"""Number of random initialisations that are tried for each gain."""
ROUNDING = 1e-6
"""Largest accepted difference of logits in 32 bits from those in 64 bits."""


class Kind(NamedTuple):
    """A kind of export.

    Attributes:
        format: name of the format.
        suffix: of the files.
        quantize: as for `leenet_fx.export`.
        largest_batch: that files accept.
        never: limit of the time when nobody exits early, as a share of the backbone's.
        size: limit of the size, as a share of the weights.
    """

    format: str
    suffix: str = ""
    quantize: str | None = None
    largest_batch: int = 8
    never: float = 1.05
    size: float = 1.01


KINDS = {
    "onnx": Kind("onnx"),
    "onnx-stages": Kind("onnx-stages"),
    "openvino": Kind("openvino"),
    "torch-export": Kind("torch-export", ".pt2", size=1.02),
    "aoti": Kind("aoti", ".pt2", never=1.02, size=1.03),
    "executorch": Kind("executorch", ".pte", largest_batch=4),
    "onnx, int8": Kind("onnx", quantize="int8", never=0.65, size=0.27),
}
CALIBRATION_IMAGES = 64
"""Number of random images for the ranges of 8-bit integers, whose times do not depend on them."""
NEVER = (0, 0, 0)
CELLS = {
    "nobody exits early, batch 1": (1, NEVER),
    "nobody exits early, batch 8": (8, NEVER),
    "all at exit 1, batch 1": (1, (1, 0, 0)),
    "all at exit 1, batch 8": (8, (8, 0, 0)),
    "25 % at exit 1, batch 8": (8, (2, 0, 0)),
    "50 % at exit 1, batch 8": (8, (4, 0, 0)),
    "75 % at exit 1, batch 8": (8, (6, 0, 0)),
}
"""Batch size, and the number of samples that exit at each exit."""


def network() -> EarlyExitModule:
    """Return the ResNet-18 of part `time`, with random weights."""
    torch.manual_seed(0)
    model = leenet_fx.create_model("torchvision/resnet18").eval()
    ee = leenet_fx.attach(model, ["layer1.1", "layer2.1", "layer3.1"])
    ee.policy = MaxProbability(0.5)
    return ee


def export_one(ee: EarlyExitModule, kind: Kind, folder: Path) -> Any:
    """Export a network, and return the result of the export."""
    images = None
    if kind.quantize is not None:
        generator = torch.Generator().manual_seed(5)
        images = torch.randn(CALIBRATION_IMAGES, 3, 224, 224, generator=generator)
    path = folder / f"network{kind.suffix}"
    return leenet_fx.export(ee, path, kind.format, images=images, quantize=kind.quantize)


def export_both(ee: EarlyExitModule, kind: Kind, folder: Path) -> tuple[Runner, Runner, Any]:
    """Export a network and its backbone; returns how to run them, and the result of the export."""
    path, beside = (folder / f"{name}{kind.suffix}" for name in ("network", "backbone"))
    result = export_one(ee, kind, folder)
    chosen = get_format(kind.format)()
    plain = copy.deepcopy(ee)
    plain.policy = NeverExit()
    leenet_fx.export(plain, beside, kind.format)
    return chosen.open(export_plan(ee), path), chosen.open(export_plan(plain), beside), result


def seconds(run: Runner, *arguments: Any) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    run(*arguments)
    return time.process_time() - start


def time_rows(name: str, present: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell of a kind of export but those that are present."""
    kind, ee = KINDS[name], network()
    plan = export_plan(ee)
    shares = ee.costs.relative("flops")
    weights = 4 * sum(p.numel() for p in ee.parameters())
    with tempfile.TemporaryDirectory() as folder:
        run, backbone, result = export_both(ee, kind, Path(folder))
        for cell, (size, counts) in CELLS.items():
            if cell in present or size > kind.largest_batch:
                continue
            batch = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(3))
            thresholds = thresholds_for(plan, batch, (*counts, size - sum(counts)))
            assert thresholds is not None
            images = batch.numpy()
            exits = run(images, thresholds, None).exit_index.tolist()
            times: tuple[list[float], list[float]] = [], []
            for _ in range(ROUNDS):
                times[0].append(seconds(run, images, thresholds, None))
                times[1].append(seconds(backbone, images, None, None))
            first, second = map(statistics.median, times)
            flops = sum(shares[index] for index in exits) / size
            yield {
                "part": "time",
                "format": name,
                "cell": cell,
                "FLOPs": round(flops, 4),
                "time": round(first / second, 4),
                "backbone, ms": round(1000 * second, 2),
                "size / weights": round(result.size / weights, 4),
                "export, s": round(result.seconds, 1),
                "largest error": result.verification.largest_error,
                "batches": result.verification.batches,
                "unreachable": result.verification.unreachable,
            }


def renew_export(name: str) -> None:
    """Export the network of part `time` again, and put the seconds into its rows."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        spent = export_one(network(), kind, Path(folder)).seconds
    rows = present_rows()
    for row in rows:
        if row.get("format") == name:
            row["export, s"] = round(spent, 1)
    print(f"{name}: {spent:.1f} s", file=sys.stderr)
    write(rows)


def families() -> list[dict[str, Any]]:
    """Return one small model of each family of torchvision and timm, smallest first."""
    stored = json.loads(COVERAGE.read_text(encoding="utf-8"))["rows"]
    rows = [row for row in stored if row["name"].startswith(("torchvision/", "timm/"))]
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["params"]):
        found.setdefault(row["family"], row)
    # torchvision's first: of timm's, not all are asked for.
    return sorted(found.values(), key=lambda row: row["family"].startswith("timm/"))


def draw_weights(backbone: nn.Module, size: int) -> float:
    """Initialise a model at random so that its logits depend on the image, but not on rounding.

    With some random weights PyTorch's own results in 32 and 64 bits differ by a thousandth, and no
    other runtime can be compared with them.

    Returns:
        The largest difference of its logits in 32 bits from those in 64, relative to the largest
        logit, on images of three standard deviations.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(LARGE_BATCH, _channels(backbone), size, size, generator=generator)
    scaled = torch.cat([images, *(scale * images[: max(BATCH_SIZES)] for scale in SCALES[1:])])
    for logits in initialisations(backbone, scaled, SEEDS):
        with torch.no_grad():
            precise = _output(copy.deepcopy(backbone).double()(scaled.double())).flatten(1)
        rounding = _difference(logits, precise)
        if rounding < ROUNDING:
            return rounding
    raise RuntimeError(f"no random weights with results that 32 bits give within {ROUNDING:g}")


def coverage_row(model: dict[str, Any]) -> dict[str, Any]:
    """Export a model, and return what was found."""
    name = model["name"]
    row: dict[str, Any] = {"part": "coverage", "family": model["family"], "model": name}
    start = time.process_time()
    try:
        backbone, size = build_small(name, SIZES[1:])
        images = torch.randn(
            2, _channels(backbone), size, size, generator=torch.Generator().manual_seed(0)
        )
        row["rounding"] = draw_weights(backbone, size)
        ee = _attach(backbone, [0.5], example_inputs=images[:1])
        ee.policy = MaxProbability(0.5)
        weights = 4 * sum(p.numel() for p in ee.parameters())
        row |= {"image": size, "tensors at the cut": len(ee.spec.cuts[0].live)}
        with tempfile.TemporaryDirectory() as folder:
            result = leenet_fx.export(ee, Path(folder) / "network.onnx")
        row |= {
            "size / weights": round(result.size / weights, 4),
            "largest error": result.verification.largest_error,
            "batches": result.verification.batches,
            "unreachable": result.verification.unreachable,
        }
    except Exception as error:
        row["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    row["verified"] = "failure" not in row
    row["export, s"] = round(time.process_time() - start, 1)
    return row


def criteria(rows: Sequence[dict[str, Any]]) -> list[Criterion]:
    """Return the values that have targets."""
    found = []
    for row in (row for row in rows if row["part"] == "time"):
        kind, name = KINDS[row["format"]], f"{row['format']}: {row['cell']}"
        if row["cell"].startswith("nobody"):
            limit, target = kind.never, f"≤ {kind.never}"
        elif kind.quantize is None:
            room = 0.03 if row["cell"].startswith("all") else 0.05
            limit = row["FLOPs"] + room
            target = f"≤ {limit:.3f}, FLOPs + {room:g}"
        else:
            continue
        found.append(Criterion(name, row["time"], "of the backbone", target, row["time"] <= limit))
    for row in {row["format"]: row for row in rows if row["part"] == "time"}.values():
        name, limit = row["format"], KINDS[row["format"]].size
        size, error, spent = row["size / weights"], row["largest error"], row["export, s"]
        found.append(
            Criterion(f"{name}: size", size, "of the weights", f"≤ {limit}", size <= limit)
        )
        if KINDS[name].quantize is None:
            found.append(
                Criterion(f"{name}: largest error", error, "relative", "≤ 1e-5", error <= 1e-5)
            )
        found.append(Criterion(f"{name}: export", spent, "s", "≤ 60", spent <= 60))
    covered = [row for row in rows if row["part"] == "coverage"]
    for library, least in (("torchvision", None), ("timm", 40)):
        total = sum(model["family"].startswith(library) for model in families())
        verified = sum(row["verified"] for row in covered if row["family"].startswith(library))
        if covered:
            met = verified >= (total if least is None else least)
            target = "all" if least is None else f"≥ {least}"
            found.append(Criterion(f"families of {library}", verified, f"of {total}", target, met))
    return found


def write(rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON and Markdown."""
    timed = [row for row in rows if row["part"] == "time"]
    covered = [row for row in rows if row["part"] == "coverage"]
    ordered = [*timed, *sorted(covered, key=lambda row: row["family"])]
    result = Result(COMMAND, ordered, criteria(ordered), environment())
    table = [{k: v for k, v in row.items() if k != "part"} for row in ordered]
    result.write(RESULT, "Exported networks: time, size and coverage", table)


def present_rows() -> list[dict[str, Any]]:
    """Return the rows that are in the results."""
    return json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []


def add(row: dict[str, Any]) -> None:
    """Add a row to the results, to which another process may have added since the last one."""
    print(row, file=sys.stderr)
    write([*present_rows(), row])


def main() -> None:
    """Measure what is not in the results, and write them after each row."""
    parser = argparse.ArgumentParser(description="Time, size and coverage of exported networks.")
    parser.add_argument("--part", choices=("time", "export", "coverage"))
    parser.add_argument(
        "--format", action="append", choices=KINDS, help="of parts `time` and `export`"
    )
    parser.add_argument("--limit", type=int, help="number of families")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = present_rows()
    if options.part == "export":
        for name in options.format or KINDS:
            renew_export(name)
    if options.part in (None, "time"):
        for name in options.format or KINDS:
            done = {row["cell"] for row in rows if row.get("format") == name}
            for row in time_rows(name, done) if done < set(CELLS) else ():
                add(row)
    if options.part in (None, "coverage"):
        present = {row.get("family") for row in rows}
        for model in families()[: options.limit]:
            if model["family"] not in present:
                add(coverage_row(model))


if __name__ == "__main__":
    main()
