"""Every published method on the same backbones and images, each with its frontier.

    python benchmarks/methods.py --data PATH --weights PATH [--part NAME]…

The data are train.tar and test.tar (32x32 images, one folder a class), the weights
resnet20_cifar10.safetensors and resnet56_cifar10.safetensors. Classifiers are fitted on `fit`,
gates and thresholds on `calibrate`, figures are of `report`. Runs that a part's folder holds are
not repeated, so a benchmark cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import leenet_fx
from leenet_fx.cli.setup import build
from leenet_fx.data.splits import open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.evaluation.compare import Comparison, Variant, compare, frozen

WORK = Path(__file__).parent / "results" / "methods"
FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
BATCH = 512
CONV_BATCH = 128
"""Images a batch for heads with convolutions."""

POOLED = [name for name in leenet_fx.list_methods() if name != "pteenet"]


@dataclass(frozen=True)
class Part:
    """One comparison.

    Attributes:
        network: the backbone.
        variants: what to compare.
        strategy: placement where a variant has none.
        num_exits: likewise.
        epochs: of each step.
        batch: images a batch.
        seeds: how many.
    """

    network: str
    variants: Sequence[Variant]
    strategy: str = "every"
    num_exits: int | None = None
    epochs: dict[str, int] = field(default_factory=lambda: {"exits": 8, "gates": 30})
    batch: int = BATCH
    seeds: int = 3


def pooled() -> list[Variant]:
    """Every preset on pooled features, the backbone frozen."""
    found = []
    for one in frozen(POOLED):
        if one.method == "eenets":
            for version in range(5):
                options = {**one.options, "version": version}
                found.append(Variant(f"eenets v{version}", "eenets", options, branch="pool"))
        else:
            found.append(Variant(one.label, one.method, one.options, branch="pool"))
    published = {"gate": "features"}
    found.append(Variant("leenet, gate on features", "leenet", branch_options=published))
    history = {"gate": "history"}
    found.append(Variant("leenet, gate on history", "leenet", branch_options=history))
    return found


def convolutional(exits: tuple[str, ...], epochs: int) -> list[Variant]:
    """Heads with convolutions behind few exits, fitted on augmented images."""
    common: dict[str, Any] = {"strategy": exits, "branch": "conv", "augmented": True}
    lengths = {"exits": epochs, "gates": 60}
    return [
        Variant("distilled, conv", "distilled", **common, epochs=lengths),
    ]


PARTS = {
    "resnet20": Part("resnet20", pooled()),
    "resnet56": Part("resnet56", pooled(), strategy="linear", num_exits=13),
    "resnet20-conv": Part("resnet20", convolutional(("layer1.0", "layer2.1"), 8), batch=CONV_BATCH),
    "resnet56-conv": Part(
        "resnet56",
        convolutional(("layer1.0", "layer2.0", "layer2.8"), 6),
        batch=CONV_BATCH,
    ),
}


def run(part: Part, data: Path, weights: Path, out: Path, seeds: int | None) -> Comparison:
    """One part; what its folder holds is not repeated."""
    name = part.network
    model = build(f"{FACTORY}:{name}", weights=weights / f"{name}_cifar10.safetensors")
    images = open_data(data)
    plain = make_transform(model, (3, 32, 32))
    augment = make_transform(model, (3, 32, 32), augment=True)
    generator = torch.Generator().manual_seed(0)
    return compare(
        model,
        part.variants,
        images.loader("fit", plain, part.batch, shuffle=generator),
        images.loader("calibrate", plain, BATCH, shuffle=generator),
        images.loader("report", plain, BATCH),
        augmented=images.loader("fit", augment, part.batch, shuffle=generator),
        strategy=part.strategy,
        num_exits=part.num_exits,
        epochs=part.epochs,
        seeds=range(part.seeds if seeds is None else seeds),
        name=name,
        out=out,
        progress=True,
    )


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description="Methods side by side on CIFAR-10.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--part", action="append", choices=sorted(PARTS))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=WORK)
    options = parser.parse_args()
    if not options.data.exists() or not options.weights.exists():
        sys.exit(f"Skipped: needs '{options.data}' and '{options.weights}'.")
    for name in options.part or PARTS:
        found = run(PARTS[name], options.data, options.weights, options.out / name, options.seeds)
        print(found.summary(), flush=True)


if __name__ == "__main__":
    main()
