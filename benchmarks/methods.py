"""Every published method on the same backbones and images, each with its frontier.

    python benchmarks/methods.py --data PATH --weights PATH [--part NAME]…

Classifiers are fitted on `fit`, gates and thresholds on `calibrate`, figures are of `report`. Runs
that a part's folder holds are not repeated, so a benchmark cut short goes on where it was. The part
"digits" needs no files: its backbone is trained first, on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cifar10 import EXITS, HEAD_BATCH, RESULTS, WORK, Cifar10, fitted_heads

import leenet_fx
from leenet_fx.data.digits import load_digits
from leenet_fx.data.splits import open_data
from leenet_fx.demo.run import train_backbone
from leenet_fx.environment import environment
from leenet_fx.evaluation.compare import compare
from leenet_fx.evaluation.comparison import (
    TABLE_BUDGETS,
    Comparison,
    MethodSpec,
    frozen_variants,
)
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import FinalClassifier
from leenet_fx.report.page import write_page
from leenet_fx.report.records import make_metadata, read_records
from leenet_fx.report.results import Criterion, Result

FOLDERS = RESULTS / "methods"
RESULT = RESULTS / "methods.json"
DIAL = RESULTS / "dial.json"
DIALLED = (0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.8)
"""α at which one network for all is set beside gates trained for each."""

COMMAND = "python benchmarks/methods.py --data PATH --weights PATH"
EPOCHS = {"exits": 6, "gates": 15}
SLOW = {"diffbranch": 6, "jei-dnn": 3, "eenets": 3}
"""Epochs of methods that train on all images anew for each weight of the cost."""

JOINT_EPOCHS = 15
"""Without a GPU the recipe that trains the backbone has one seed."""

PRESETS = [name for name in leenet_fx.list_methods() if name != "pteenet"]
"""PTEEnet's branches are convolutions: it is compared on digits, not on pooled features."""

JOINT_LR = 0.24
"""Eight times the recipe's own, of plain model and exits alike: fifteen epochs are short."""

PRECISION = "bf16-mixed"
"""Of the recipe that trains the backbone, and of the plain model trained as long."""

ASKED = {
    "resnet20": ((0.01, 0.60), (0.03, 0.50)),
    "resnet56": ((0.01, 0.57), (0.03, 0.46)),
    "resnet20-mixed": ((0.0, 0.55), (0.01, 0.42)),
}
"""(accuracy lost, relative FLOPs) that were asked for."""


@leenet_fx.register_method("trained-on")
def trained_on() -> leenet_fx.Method:
    """The plain model, trained as long as one with exits."""
    step = single_update_phase("together", "backbone", FinalClassifier(), lr=0.03, sgd_lr=0.01)
    return leenet_fx.Method((step,), leenet_fx.NeverExit(), "the reference")


def brisk(variants: Sequence[MethodSpec]) -> list[MethodSpec]:
    """The slow ones last, with fewer epochs."""
    found = []
    for one in variants:
        last = SLOW.get(one.method, EPOCHS["gates"])
        found.append(replace(one, epochs={**EPOCHS, "gates": last, "turns": last}))
    return sorted(found, key=lambda one: one.method in SLOW)


def convolutional(name: str) -> list[MethodSpec]:
    """Methods on the heads with convolutions that `cifar10.py` fits, which stay as they are."""
    common: dict[str, Any] = {
        "strategy": EXITS[name],
        "branch": "conv",
        "augmented": True,
        "start": str(WORK / f"{name}-{{seed}}"),
        "epochs": {"exits": 0, "gates": 60},
    }
    history, dial = {"gate": "history"}, {"gate": "dial"}
    return [
        MethodSpec("conv: distilled", "distilled", branch_options=history, **common),
        MethodSpec(
            "conv: branchynet",
            "branchynet",
            {"recipe": "disjoint"},
            branch_options=history,
            **common,
        ),
        MethodSpec(
            "conv: msdnet", "msdnet", {"recipe": "disjoint"}, branch_options=history, **common
        ),
        MethodSpec("conv: leenet", "leenet", branch_options=history, **common),
        MethodSpec("conv: leenet-dial", "leenet-dial", branch_options=dial, **common),
    ]


def mixed(name: str) -> list[MethodSpec]:
    """The backbone trained with the heads."""
    return [
        MethodSpec(
            "conv: distilled, mixed",
            "distilled",
            {"recipe": "joint"},
            strategy=EXITS[name],
            branch="conv",
            branch_options={"gate": "history"},
            start=str(WORK / f"{name}-{{seed}}"),
            epochs={"together": JOINT_EPOCHS},
            lr=JOINT_LR,
        ),
    ]


def accuracy_trained_on(name: str, options: argparse.Namespace) -> float:
    """The plain model's accuracy on the report images, trained for as many epochs alone."""
    file = WORK / f"{name}-trained-on.json"
    if not file.exists():
        cifar = Cifar10(name, options.data, options.weights)
        ee = leenet_fx.attach(cifar.model, EXITS[name], name=name)
        torch.manual_seed(0)
        images = cifar.loader("train", augment=True, seed=0, batch=HEAD_BATCH)
        leenet_fx.fit(
            ee,
            images,
            method="trained-on",
            epochs=JOINT_EPOCHS,
            lr=JOINT_LR,
            precision=PRECISION,
        )
        right = [
            (ee(images).argmax(1) == labels).double().mean()
            for images, labels in cifar.loader("test", batch=500)
        ]
        file.write_text(json.dumps(float(torch.stack(right).mean())))
    return float(json.loads(file.read_text()))


def on_cifar10(
    name: str, variants: list[MethodSpec], options: argparse.Namespace, out: Path, **given: Any
) -> Comparison:
    """A comparison on CIFAR-10."""
    cifar = Cifar10(name, options.data, options.weights)
    seeds = range(given.pop("seeds", 3))
    if any(variant.start for variant in variants):
        for seed in seeds:
            fitted_heads(cifar, seed)
    title = given.pop("title", name)
    ee = leenet_fx.attach(cifar.model, EXITS[name], branch="conv", copy=False, name=title)
    config = {"epochs": EPOCHS, "joint_epochs": JOINT_EPOCHS, "seeds": len(seeds), **given}
    return compare(
        cifar.model,
        variants,
        cifar.loader("train", seed=0),
        cifar.loader("calibration", seed=0),
        cifar.loader("test"),
        augmented=cifar.loader("train", augment=True, seed=0, batch=HEAD_BATCH),
        epochs=EPOCHS,
        seeds=seeds,
        name=title,
        out=out,
        metadata=make_metadata(ee, command=COMMAND, config=config, classes=cifar.images.classes),
        progress=True,
        **given,
    )


def on_digits(out: Path) -> Comparison:
    """All presets on the demo's backbone and digits."""
    torch.manual_seed(0)
    model = train_backbone(load_digits(seed=0)["train"], 2, 0)
    images = open_data("digits")
    shuffle = torch.Generator().manual_seed(0)

    def loader(split: str, *, shuffled: bool) -> Any:
        return images.loader(split, _as_tensor, 64, shuffle=shuffle if shuffled else None)

    example = next(iter(loader("test", shuffled=False)))[0][:1]
    ee = leenet_fx.attach(model, "linear", num_exits=3, example_inputs=example, copy=False)
    return compare(
        model,
        brisk(frozen_variants([*PRESETS, "pteenet"])),
        loader("train", shuffled=True),
        loader("calibration", shuffled=True),
        loader("test", shuffled=False),
        strategy="linear",
        num_exits=3,
        example_inputs=example,
        epochs=EPOCHS,
        seeds=range(3),
        name="digits",
        out=out,
        metadata=make_metadata(
            ee, command=COMMAND, config={"epochs": EPOCHS}, classes=images.classes
        ),
        progress=True,
    )


def figures(comparisons: dict[str, Comparison], trained: float | None) -> list[Criterion]:
    """What was asked for, beside what was found."""
    made = []
    for part, asked in ASKED.items():
        if part not in comparisons:
            continue
        found = comparisons[part]
        plain = found.backbone_accuracy
        if part.endswith("-mixed") and trained is not None:
            plain = trained
        for lost, flops in asked:
            least, label = least_lost(found, plain, flops)
            words = f"{part}: lost at {100 * flops:g} % of the FLOPs ({label})"
            allowed = f"≤ {100 * lost:g}"
            made.append(Criterion(words, 100 * least, "points", allowed, least <= lost))
    return made


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the Markdown shows them."""

    def shown(value: float | None, scale: float, digits: int) -> str:
        return "–" if value is None else f"{scale * value:.{digits}f}"

    return [
        {
            "part": row["part"],
            "method": row["label"],
            "seeds": row["seeds"],
            "area": shown(row["area"], 1, 3),
            **{f"−{at} pt, FLOPs %": shown(row[f"flops_at_{at}"], 100, 1) for at in (0, 1, 3)},
            **{
                f"@{at}, accuracy %": shown(row[f"accuracy_at_{at}"], 100, 2)
                for at in TABLE_BUDGETS
            },
            "trained, s": shown(row["trained_seconds"], 1, 0),
        }
        for row in rows
    ]


def dial_rows(part: str, found: Comparison) -> list[dict[str, Any]]:
    """One network for all α beside gates of their own for each, medians over seeds."""

    def median(label: str, alpha: float, field: str) -> float:
        return statistics.median(
            getattr(at, field)
            for run in found.runs
            if run.label == label
            for at in run.points
            if at.value == alpha
        )

    return [
        {
            "part": part,
            "α": alpha,
            "own gates: accuracy %": 100 * median("conv: leenet", alpha, "accuracy"),
            "dial: accuracy %": 100 * median("conv: leenet-dial", alpha, "accuracy"),
            "own gates: FLOPs": median("conv: leenet", alpha, "relative_flops"),
            "dial: FLOPs": median("conv: leenet-dial", alpha, "relative_flops"),
        }
        for alpha in DIALLED
    ]


def write_dial(comparisons: dict[str, Comparison]) -> None:
    """The dial's result, of the parts that have it."""
    rows, made = [], []
    for part, found in comparisons.items():
        areas = {row["label"]: row["area"] for row in found.rows()}
        if "conv: leenet-dial" not in areas:
            continue
        rows += dial_rows(part, found)
        behind = areas["conv: leenet"] - areas["conv: leenet-dial"]
        words = f"{part}: area under the frontier, gates of their own less dial"
        made.append(Criterion(words, behind, "", "printed", True))
    if rows:
        result = Result(COMMAND, rows, made, environment())
        result.write(DIAL, "One network for all α, beside gates trained for each")


def least_lost(found: Comparison, plain: float, flops: float) -> tuple[float, str]:
    """What the best method loses within a budget, in the median over seeds, and its name."""
    lost = {
        label: statistics.median(
            plain - (run.accuracy_within(flops) or 0.0) for run in found.runs if run.label == label
        )
        for label in dict.fromkeys(run.label for run in found.runs)
    }
    best = min(lost, key=lambda label: lost[label])
    return lost[best], best


def main() -> None:
    """Runs the parts, and writes JSON, Markdown and the page of all that there is."""
    parser = argparse.ArgumentParser(description="Methods side by side.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--part", action="append")
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    on_pool = [replace(one, branch="pool") for one in frozen_variants(PRESETS)]
    parts: dict[str, Callable[[Path], Comparison]] = {
        "digits": on_digits,
        "resnet20": lambda out: on_cifar10(
            "resnet20",
            [*convolutional("resnet20"), *brisk(on_pool)],
            options,
            out,
        ),
        "resnet56": lambda out: on_cifar10(
            "resnet56",
            convolutional("resnet56"),
            options,
            out,
        ),
        "resnet20-mixed": lambda out: on_cifar10(
            "resnet20",
            mixed("resnet20"),
            options,
            out,
            title="resnet20, backbone trained",
            seeds=1,
            precision=PRECISION,
        ),
    }
    unknown = set(options.part or ()) - set(parts)
    if unknown:
        sys.exit(f"No part {', '.join(unknown)}; there are {', '.join(parts)}.")
    found: dict[str, Comparison] = {}
    for name in parts:
        if name in (options.part or parts):
            found[name] = parts[name](FOLDERS / name)
            print(found[name].summary(), flush=True)
    trained = accuracy_trained_on("resnet20", options) if "resnet20-mixed" in found else None
    write(found, list(parts), trained)


def write(found: dict[str, Comparison], names: Sequence[str], trained: float | None) -> None:
    """The results of all parts whose folders hold one."""
    records = [read_records(FOLDERS / n)[0] for n in names if (FOLDERS / n).exists()]
    rows = [
        {"part": name, **{k: v for k, v in row.items() if k != "areas"}}
        for name, comparison in found.items()
        for row in comparison.rows()
    ]
    result = Result(COMMAND, rows, figures(found, trained), environment())
    result.write(RESULT, "Methods side by side", table(rows))
    write_dial(found)
    write_page(RESULT.with_suffix(".html"), records, "Methods side by side")


def _as_tensor(image: Any) -> torch.Tensor:
    from torchvision.transforms.functional import to_tensor

    return to_tensor(image)


if __name__ == "__main__":
    main()
