"""Outputs of exits at every boundary of a network on real images, computed once and stored.

The backbone is frozen; the branches are pooled linear heads, trained by `leenet_fx.fit` at its
defaults. A branch does not depend on the others, so the outputs of any placement are a part of
these.

    python benchmarks/exit_outputs.py --data PATH --models PATH NETWORK/DATA…
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cifar10 import WORK
from new_classifier import CASES, Case
from safetensors.torch import load_file, save_file
from torch import Tensor

import leenet_fx
from leenet_fx.calibration.cached_outputs import CachedOutputs, outputs_of_data
from placement import CostProfile

SPLITS = ("calibration", "test")
EPOCHS = 12
BATCH = 128


LITE0 = CASES[0]
PAIRS: dict[str, Case] = {
    f"{case.network}/{case.data}": case for case in (*CASES, replace(LITE0, data="imagenette"))
}


@dataclass(frozen=True)
class ExitOutputsOfPair:
    """Outputs of exits at all M boundaries of a network, and their costs.

    Attributes:
        profile: cost of the backbone up to each boundary.
        branches: M, FLOPs of the branches relative to the backbone.
        outputs: by split, with M+1 class logits.
    """

    profile: CostProfile
    branches: tuple[float, ...]
    outputs: dict[str, CachedOutputs]


def missing(pair: str, data: Path, models: Path) -> Path | None:
    """Return the first file or folder that the outputs of a pair need and that is missing."""
    case = PAIRS[pair]
    for path in (data / case.data, models / case.weights):
        if not path.exists():
            return path
    return None


def exit_outputs(pair: str, data: Path, models: Path) -> ExitOutputsOfPair:
    """Return the outputs of a pair; those that are stored are not computed again.

    Args:
        pair: a key of `PAIRS`.
        data: folder of the data sets.
        models: folder of the weights.
    """
    folder = WORK / f"exits-{pair.replace('/', '-')}"
    costs = folder / "costs.json"
    if not costs.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compute(pair, data, models, folder)
    values = json.loads(costs.read_text())
    profile = CostProfile.from_json(values["profile"])
    outputs = {split: _load(folder / f"{split}.safetensors") for split in SPLITS}
    return ExitOutputsOfPair(profile, tuple(values["branches"]), outputs)


def _compute(pair: str, data: Path, models: Path, folder: Path) -> None:
    case = PAIRS[pair]
    start = time.perf_counter()
    images = leenet_fx.open_data(data / case.data)
    model = case.build(models / case.weights)
    ee = leenet_fx.attach(
        model,
        "every",
        num_classes=len(images.classes),
        example_inputs=torch.zeros(1, 3, case.size, case.size),
        name=case.network,
    )
    transform = leenet_fx.make_transform(model, ee.spec.image_shape)
    shuffle = torch.Generator().manual_seed(0)
    train = images.loader("train", transform, BATCH, shuffle=shuffle)
    leenet_fx.fit(ee, train, method="shallow-deep", epochs=EPOCHS, cache=True, progress=False)
    _report(f"{pair}: trained {ee.num_exits} exits", start)
    for split in SPLITS:
        loader = images.loader(split, transform, BATCH)
        outputs = outputs_of_data(ee, loader, labelled=True)
        tensors = {f"logits.{i}": logits for i, logits in enumerate(outputs.logits)}
        save_file({**tensors, "labels": outputs.labels}, folder / f"{split}.safetensors")
        _report(f"{pair}: outputs of {split}", start)
    backbone = ee.spec.profile.flops
    branches = [(cost.hidden + cost.classify).flops / backbone for cost in ee.spec.branch_costs]
    values = {"profile": ee.spec.profile.to_json(), "branches": branches}
    (folder / "costs.json").write_text(json.dumps(values))


def _load(file: Path) -> CachedOutputs:
    stored = load_file(file)
    logits = tuple(stored[f"logits.{i}"] for i in range(len(stored) - 1))
    empty: tuple[Tensor, ...] = tuple(torch.empty(len(logits[0]), 0) for _ in logits[:-1])
    return CachedOutputs(logits, empty, stored["labels"])


def _report(text: str, start: float) -> None:
    print(f"{text}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Compute and store the outputs of the given pairs."""
    parser = argparse.ArgumentParser(description="Outputs of exits at every boundary.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("pairs", nargs="*", help=", ".join(PAIRS))
    options = parser.parse_args()
    for pair in options.pairs or PAIRS:
        exit_outputs(pair, options.data, options.models)


if __name__ == "__main__":
    main()
