"""Frontiers of every published method on the same backbones and images.

    python benchmarks/methods.py --data PATH --weights PATH [--part NAME]… [--method NAME]…

`--data` has the folders cifar10, caltech101 and imagenette. Classifiers are trained on the train
split, gates and thresholds on the calibration split; accuracies are of the test split; Imagenette's
has images that are new to the networks. Runs whose results are in a part's folder are not repeated,
so an interrupted benchmark is resumed. The part "digits" needs no files: its backbone is trained on
scikit-learn's digits first. With `--part` or `--method`, other rows of the table are kept; pages
are drawn where all methods of a part are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar10 import EXITS, HEAD_BATCH, RESULTS, WORK, Cifar10, trained_branches
from methods_images import PARTS, TRAINED, on_images, trained_on, trained_variants
from static_family import beside

import leenet_fx
from leenet_fx.cost.page_faults import keep_memory
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
ALPHA_CONDITIONED = RESULTS / "alpha_conditioned.json"
ALPHAS = (0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.8)
"""Values of α at which α-conditioned gates and gates trained for one α are compared."""

COMMAND = "python benchmarks/methods.py --data PATH --weights PATH"
EPOCHS = {"exits": 6, "gates": 15}
SLOW = {"diffbranch": 6, "jei-dnn": 3, "eenets": 3}
"""Number of epochs of methods that train on all images for each cost weight."""

JOINT_EPOCHS = 15
"""Number of epochs of the recipe that trains the backbone, which has one seed."""

METHODS = [name for name in leenet_fx.list_methods() if name not in ("lgvit", "pteenet")]
"""All but PTEEnet, whose branches are convolutional: it is compared on digits only; and
LGViT, whose heads read tokens, which these networks have none of."""

DISTILLED = [
    MethodSpec("distilled, ensembles", "distilled", {"ensembles": True}),
    MethodSpec("distilled, no labels", "distilled", {"mix": 1.0}),
    MethodSpec("distilled, ensembles, no labels", "distilled", {"mix": 1.0, "ensembles": True}),
]
"""Options of distillation that are compared, too."""

JOINT_LR = 0.24
"""Eight times the recipe's default, for backbone and exits: fifteen epochs are few."""

PRECISION = "auto"
"""Of the recipe that trains the backbone, and of the backbone trained alone."""

TARGETS = {
    "resnet20": ((0.01, 0.60), (0.03, 0.50)),
    "resnet56": ((0.01, 0.57), (0.03, 0.46)),
    "resnet20-mixed": ((0.0, 0.55), (0.01, 0.42)),
}
"""Part → pairs of maximum accuracy drop and relative FLOPs."""


@leenet_fx.register_method("backbone-only")
def backbone_only() -> leenet_fx.Method:
    """Return a method that trains the backbone alone, for reference."""
    phase = single_update_phase("joint", "backbone", FinalClassifier(), lr=0.03, sgd_lr=0.01)
    return leenet_fx.Method((phase,), leenet_fx.NeverExit(), "reference")


def with_fewer_epochs(specs: Sequence[MethodSpec]) -> list[MethodSpec]:
    """Return the methods with fewer epochs of slow ones, and these last."""
    changed = []
    for spec in specs:
        last = SLOW.get(spec.method, EPOCHS["gates"])
        changed.append(replace(spec, epochs={**EPOCHS, "gates": last, "alternating": last}))
    return sorted(changed, key=lambda spec: spec.method in SLOW)


def variants(methods: Sequence[str]) -> list[MethodSpec]:
    """Return a spec of each method on a frozen backbone, and those of `DISTILLED`."""
    return frozen_variants(methods) + [spec for spec in DISTILLED if spec.method in methods]


def convolutional(name: str) -> list[MethodSpec]:
    """Return methods on the convolutional branches that `cifar10.py` trains, which are frozen."""
    common: dict[str, Any] = {
        "strategy": EXITS[name],
        "branch": "conv",
        "augmented": True,
        "start": str(WORK / f"{name}-{{seed}}"),
        "epochs": {"exits": 0, "gates": 60},
    }
    history, alpha = {"gate": "history"}, {"gate": "alpha"}
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
        MethodSpec("conv: leenet-alpha", "leenet-alpha", branch_options=alpha, **common),
    ]


def mixed(name: str) -> list[MethodSpec]:
    """Return methods that train the backbone with its exits."""
    return [
        MethodSpec(
            "conv: distilled, mixed",
            "distilled",
            {"recipe": "joint"},
            strategy=EXITS[name],
            branch="conv",
            branch_options={"gate": "history"},
            start=str(WORK / f"{name}-{{seed}}"),
            epochs={"joint": JOINT_EPOCHS},
            lr=JOINT_LR,
        ),
    ]


def backbone_accuracy(name: str, options: argparse.Namespace) -> float:
    """Return the test accuracy of the backbone trained alone for as many epochs."""
    file = WORK / f"{name}-backbone-only.json"
    if not file.exists():
        cifar = Cifar10(name, options.data / "cifar10", options.weights)
        ee = leenet_fx.attach(cifar.model, EXITS[name], name=name)
        torch.manual_seed(0)
        images = cifar.loader("train", augment=True, seed=0, batch=HEAD_BATCH)
        leenet_fx.fit(
            ee,
            images,
            method="backbone-only",
            epochs=JOINT_EPOCHS,
            lr=JOINT_LR,
            precision=PRECISION,
        )
        correct = [
            (ee(images).argmax(1) == labels).double().mean()
            for images, labels in cifar.loader("test", batch=500)
        ]
        file.write_text(json.dumps(float(torch.stack(correct).mean())))
    return float(json.loads(file.read_text()))


def on_cifar10(
    name: str, specs: list[MethodSpec], options: argparse.Namespace, out: Path, **arguments: Any
) -> Comparison:
    """Compare methods on CIFAR-10."""
    cifar = Cifar10(name, options.data / "cifar10", options.weights)
    seeds = range(arguments.pop("seeds", 3))
    if any(spec.start for spec in specs):
        for seed in seeds:
            trained_branches(cifar, seed)
    title = arguments.pop("title", name)
    ee = leenet_fx.attach(cifar.model, EXITS[name], branch="conv", copy=False, name=title)
    config = {"epochs": EPOCHS, "joint_epochs": JOINT_EPOCHS, "seeds": len(seeds), **arguments}
    return compare(
        cifar.model,
        specs,
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
        **arguments,
    )


def on_digits(out: Path) -> Comparison:
    """Compare all methods on the demo's backbone and digits."""
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
        with_fewer_epochs(variants([*METHODS, "pteenet"])),
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


def criteria(comparisons: dict[str, Comparison], trained: float | None) -> list[Criterion]:
    """Return the criteria and whether they are met.

    Args:
        comparisons: by part.
        trained: accuracy of the backbone trained alone, if it was measured.
    """
    results = []
    for part, targets in TARGETS.items():
        if part not in comparisons:
            continue
        comparison = comparisons[part]
        backbone = comparison.backbone_accuracy
        if part.endswith("-mixed") and trained is not None:
            backbone = trained
        for max_drop, flops in targets:
            drop, label = smallest_drop(comparison, backbone, flops)
            name = f"{part}: accuracy drop at {100 * flops:g} % of the FLOPs ({label})"
            target = f"≤ {100 * max_drop:g}"
            results.append(Criterion(name, 100 * drop, "points", target, drop <= max_drop))
    return results


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Markdown table."""

    def formatted(value: float | None, scale: float, digits: int) -> str:
        return "–" if value is None else f"{scale * value:.{digits}f}"

    return [
        {
            "part": row["part"],
            "method": row["label"],
            "seeds": row["seeds"],
            "area": formatted(row["area"], 1, 3),
            "from, FLOPs %": formatted(row.get("cheapest_flops"), 100, 1),
            **{f"−{at} pt, FLOPs %": formatted(row[f"flops_at_{at}"], 100, 1) for at in (0, 1, 3)},
            **{
                f"@{at}, accuracy %": formatted(row[f"accuracy_at_{at}"], 100, 2)
                for at in TABLE_BUDGETS
            },
            "training, s": formatted(row["trained_seconds"], 1, 0),
        }
        for row in rows
    ]


def alpha_rows(part: str, comparison: Comparison) -> list[dict[str, Any]]:
    """Return medians over seeds of α-conditioned gates and of gates trained for one α."""

    def median(label: str, alpha: float, field: str) -> float:
        return statistics.median(
            getattr(point, field)
            for run in comparison.runs
            if run.label == label
            for point in run.points
            if point.value == alpha
        )

    return [
        {
            "part": part,
            "α": alpha,
            "gates of one α: accuracy %": 100 * median("conv: leenet", alpha, "accuracy"),
            "α-conditioned: accuracy %": 100 * median("conv: leenet-alpha", alpha, "accuracy"),
            "gates of one α: FLOPs": median("conv: leenet", alpha, "relative_flops"),
            "α-conditioned: FLOPs": median("conv: leenet-alpha", alpha, "relative_flops"),
        }
        for alpha in ALPHAS
    ]


def write_alpha_conditioned(comparisons: dict[str, Comparison]) -> None:
    """Write the comparison of α-conditioned gates with gates trained for each α."""
    rows, results = [], []
    for part, comparison in comparisons.items():
        areas = {row["label"]: row["area"] for row in comparison.rows()}
        if "conv: leenet-alpha" not in areas:
            continue
        rows += alpha_rows(part, comparison)
        difference = areas["conv: leenet"] - areas["conv: leenet-alpha"]
        name = f"{part}: area under the frontier, gates of one α minus α-conditioned"
        results.append(Criterion(name, difference, "", "printed", True))
    if rows:
        result = Result(COMMAND, rows, results, environment())
        result.write(ALPHA_CONDITIONED, "α-conditioned gates, and gates trained for each α")


def smallest_drop(comparison: Comparison, backbone: float, flops: float) -> tuple[float, str]:
    """Return the smallest accuracy drop within a budget, and the name of its method.

    Args:
        comparison: of methods.
        backbone: accuracy of the backbone.
        flops: budget of mean FLOPs, relative to the backbone.
    """
    drops = {
        label: statistics.median(
            backbone - (run.accuracy_within(flops) or 0.0)
            for run in comparison.runs
            if run.label == label
        )
        for label in dict.fromkeys(run.label for run in comparison.runs)
    }
    best = min(drops, key=lambda label: drops[label])
    return drops[best], best


def main() -> None:
    """Run the parts, and write JSON, Markdown and a page of each part."""
    parser = argparse.ArgumentParser(description="Comparison of methods.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--part", action="append")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3, help="of parts with a frozen backbone")
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    keep_memory()
    chosen = options.method or METHODS
    on_pool = [replace(spec, branch="pool") for spec in variants(chosen)]
    on_conv = [spec for spec in convolutional("resnet20") if options.method is None]
    parts: dict[str, Callable[[Path], Comparison]] = {
        "digits": on_digits,
        "resnet20": lambda out: on_cifar10(
            "resnet20",
            [*on_conv, *with_fewer_epochs(on_pool)],
            options,
            out,
            seeds=options.seeds,
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
        **{part: partial(on_images, part, on_pool, options, command=COMMAND) for part in PARTS},
        **{
            part: partial(on_images, part, trained_variants(), options, command=COMMAND)
            for part in TRAINED
        },
    }
    unknown = set(options.part or ()) - set(parts)
    if unknown:
        sys.exit(f"Unknown part {', '.join(unknown)}. Available: {', '.join(parts)}.")
    comparisons: dict[str, Comparison] = {}
    for name in parts:
        if name in (options.part or parts):
            comparisons[name] = parts[name](FOLDERS / name)
            print(comparisons[name].summary(), flush=True)
    trained = backbone_accuracy("resnet20", options) if "resnet20-mixed" in comparisons else None
    # The criteria are of the best of all methods.
    measured = criteria(comparisons, trained) if options.method is None else []
    for part in (name for name in TRAINED if name in comparisons):
        name = f"{part}: accuracy of the backbone, trained on alone for as many epochs"
        measured.append(Criterion(name, 100 * trained_on(part, options), "%", "printed", True))
    write(comparisons, list(parts), measured)
    if options.method is None:
        draw(comparisons)


def write(
    comparisons: dict[str, Comparison], names: Sequence[str], measured: Sequence[Criterion]
) -> None:
    """Write the results of the measured parts; other rows are kept."""
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": [], "criteria": []}
    rows = {(row["part"], row["label"]): row for row in stored["rows"]}
    for name, comparison in comparisons.items():
        for row in beside(comparison, name).rows():
            rows[name, row["label"]] = {
                "part": name,
                **{k: v for k, v in row.items() if k != "areas"},
                "date": environment()["date"],
            }
    found = sorted(rows.values(), key=lambda row: (names.index(row["part"]), -(row["area"] or 0)))
    met = {value["name"]: Criterion(**value) for value in stored["criteria"]}
    met |= {criterion.name: criterion for criterion in measured}
    result = Result(COMMAND, found, list(met.values()), environment())
    result.write(RESULT, "Comparison of methods", table(found))
    write_alpha_conditioned(comparisons)


def draw(comparisons: dict[str, Comparison]) -> None:
    """Write the page of each part."""
    for name, comparison in comparisons.items():
        record = dict(read_records(FOLDERS / name)[0])
        drawn = {**record, "comparison": beside(comparison, name).to_dict()}
        page = RESULTS / f"methods-{name}.html"
        write_page(page, [drawn], f"Comparison of methods: {name}", interactive=False)


def _as_tensor(image: Any) -> torch.Tensor:
    from torchvision.transforms.functional import to_tensor

    return to_tensor(image)


if __name__ == "__main__":
    main()
