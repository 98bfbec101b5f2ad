"""Smaller networks, and smaller images, without exits: what a user would take instead.

    python benchmarks/static_family.py --data PATH --weights PATH [--rows NAME…] [--train]

`--data` has the folders cifar10 and caltech101. Accuracies are of the test split. Of the ResNets
for CIFAR-10, 20 and 56 have weights of these images; 32 and 44 have weights of the lossless images,
and `--train` fine-tunes them first, likewise; without it they are measured, but not drawn.
EfficientNet-Lite0 keeps its ImageNet weights; logistic
regression is fitted to its pooled features of the train split at each size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cifar10 import FACTORY, RESULTS
from in_memory import InMemory
from safetensors.torch import load_file
from torch import nn

import leenet_fx
from leenet_fx.cost.page_faults import keep_memory
from leenet_fx.environment import environment
from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun
from leenet_fx.report.results import Result

RESULT = RESULTS / "static_family.json"
COMMAND = "python benchmarks/static_family.py --data PATH --weights PATH --train"
LABEL = "plain networks"
"""Of the family among the methods of a comparison."""

LR = 0.06
"""Of the fine-tuning: SGD's maximum learning rate is a third of it."""

BATCH = 64
REGULARIZATION = 1.0


@dataclass(frozen=True)
class Member:
    """A network without exits.

    Attributes:
        family: "resnet" or "lite0".
        network: name.
        size: of the images.
        weights: file.
        epochs: of fine-tuning with `--train`.
    """

    family: str
    network: str
    size: int
    weights: str
    epochs: int = 0


MEMBERS = {
    **{
        f"resnet{depth}": Member(
            "resnet", f"resnet{depth}", 32, f"resnet{depth}_cifar10{suffix}.safetensors", epochs
        )
        for depth, suffix, epochs in (
            (20, "", 0),
            (32, "_lossless", 8),
            (44, "_lossless", 6),
            (56, "", 0),
        )
    },
    **{
        f"lite0-{size}": Member(
            "lite0", "tf_efficientnet_lite0", size, "tf_efficientnet_lite0.safetensors"
        )
        for size in (160, 128, 112, 96)
    },
}

LARGEST = ("resnet56", "lite0-160")
MEMBER_OF = {"resnet20-mixed": "resnet20", "lite0-caltech101": "lite0-160"}
"""Part of the comparison of methods → its backbone, where the names differ."""


def build(member: Member, weights: Path) -> nn.Module:
    """Return the network of a member, with its weights."""
    name = f"{FACTORY}:{member.network}" if member.family == "resnet" else f"timm/{member.network}"
    model = leenet_fx.create_model(name)
    model.load_state_dict(load_file(weights / member.weights))
    return model.eval()


def measure(member: Member, options: argparse.Namespace) -> dict[str, Any]:
    """Return FLOPs and accuracy of a member."""
    model = build(member, options.weights)
    folder = "cifar10" if member.family == "resnet" else "caltech101"
    data = InMemory(
        options.data / folder, model, member.size, limit=options.images, device=options.device
    )
    example = torch.zeros(1, 3, member.size, member.size)
    ee = leenet_fx.attach(
        model,
        num_exits=1,
        example_inputs=example,
        num_classes=len(data.classes),
        name=member.network,
    ).to(options.device)
    epochs = member.epochs if options.train else 0
    start = time.perf_counter()
    if epochs:
        from methods import backbone_only

        torch.manual_seed(0)
        train = data.training(seed=0, batch=128, augment=True)
        leenet_fx.fit(
            ee,
            train,
            method=backbone_only(),
            epochs=epochs,
            lr=LR,
            precision="auto",
            progress=False,
        )
    found = accuracy(ee, data) if member.family == "resnet" else regression(ee, data)
    return {
        "family": member.family,
        "network": member.network,
        "size": member.size,
        "flops": ee.spec.profile.flops,
        "accuracy": found,
        "fine-tuned": epochs,
        "lossless weights": "lossless" in member.weights and not epochs,
        "images": options.images,
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def accuracy(ee: leenet_fx.EarlyExitModule, data: InMemory) -> float:
    """Return the accuracy with early exits disabled."""
    ee.eval()
    right = [
        ee.run_with(images.to(ee.device), leenet_fx.NeverExit())[0].argmax(1).cpu() == labels
        for images, labels in data.loader("test")
    ]
    return float(torch.cat(right).double().mean())


def regression(ee: leenet_fx.EarlyExitModule, data: InMemory) -> float:
    """Return the accuracy of logistic regression on the inputs of the final classifier."""
    from new_classifier import final_inputs
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    inputs = {}
    for split in ("train", "test"):
        with leenet_fx.cache_features(ee, data.loader(split, batch=BATCH)) as cache:
            inputs[split] = [values.numpy() for values in final_inputs(cache)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=REGULARIZATION, max_iter=300).fit(*inputs["train"])
    return float(fitted.score(*inputs["test"]))


def stored() -> dict[str, Any]:
    """Return the records of the finished members."""
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    return {row["member"]: row for row in rows}


def family(name: str) -> list[dict[str, Any]]:
    """Return the records of a family's trained members, cheapest first."""
    found = stored().values()
    rows = [row for row in found if row["family"] == name and not row["lossless weights"]]
    return sorted(rows, key=lambda row: row["flops"])


def beside(comparison: Comparison, part: str) -> Comparison:
    """Return a comparison with the smaller networks of its backbone's family as one more method.

    Args:
        comparison: of methods on the backbone.
        part: of the comparison of methods, such as "resnet56".
    """
    name = MEMBER_OF.get(part, part)
    if name not in MEMBERS:
        return comparison
    members = family(MEMBERS[name].family)
    whole = next((row["flops"] for row in members if row["member"] == name), None)
    if whole is None:
        return comparison
    points = tuple(
        FrontierPoint(row["flops"], row["accuracy"], row["flops"] / whole, (0.0, 1.0))
        for row in members
        if row["flops"] <= whole
    )
    if len(points) < 2:
        return comparison
    run = MethodRun(
        label=LABEL,
        method=LABEL,
        seed=0,
        trade_off="threshold",
        backbone_accuracy=comparison.backbone_accuracy,
        exits=(),
        trained_seconds=0.0,
        points=points,
        key="",
    )
    return Comparison(
        comparison.model,
        comparison.backbone_accuracy,
        comparison.samples,
        comparison.classes,
        (*comparison.runs, run),
        comparison.skipped,
    )


def write(found: dict[str, Any]) -> None:
    """Write the results of all finished members."""
    records = [found[name] for name in MEMBERS if name in found]
    largest = {row["family"]: row["flops"] for row in records if row["member"] in LARGEST}
    table = [
        {
            "network": row["network"],
            "images": f"{row['size']} px",
            "MFLOPs": f"{row['flops'] / 1e6:.1f}",
            "of the largest": f"{row['flops'] / largest[row['family']]:.3f}"
            if row["family"] in largest
            else "–",
            "accuracy, %": f"{100 * row['accuracy']:.2f}",
            "weights": "of lossless images, not fine-tuned"
            if row["lossless weights"]
            else (f"fine-tuned, {row['fine-tuned']} epochs" if row["fine-tuned"] else "as given"),
        }
        for row in records
    ]
    Result(COMMAND, records, [], environment()).write(RESULT, "Networks without exits", table)


def main() -> None:
    """Measure the members that are not finished, and write all."""
    parser = argparse.ArgumentParser(description="Networks without exits.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(MEMBERS), choices=MEMBERS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="at most so many images of each split")
    parser.add_argument("--train", action="store_true", help="fine-tune where it is needed")
    options = parser.parse_args()
    for path in (options.data, options.weights):
        if not path.exists():
            sys.exit(f"Skipped: needs '{path}'.")
    keep_memory()
    for name in options.rows:
        done = stored().get(name)
        wanted = MEMBERS[name].epochs if options.train else 0
        if done is not None and done["fine-tuned"] >= wanted and done["images"] == options.images:
            continue
        found = {"member": name, **measure(MEMBERS[name], options)}
        write(stored() | {name: found})
        print(json.dumps(found), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
