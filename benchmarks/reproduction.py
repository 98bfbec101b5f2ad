"""Published methods in the regime and the accounting of their papers, beside what they claim.

    python benchmarks/reproduction.py --data PATH --weights PATH [--rows NAME…] [--device cuda]
    python benchmarks/reproduction.py --data PATH --weights PATH --time --rows leenet-lite0
    python benchmarks/reproduction.py --render

`--data` has the folders cifar10 and imagenette, `--weights` the files of the networks. Each row is
trained alone and kept in a file of its own, so that rows can run at the same time as several
processes, and a finished one is not trained again. Operating points are chosen on the calibration
split and reported on the test split. `--time` measures rows of LEENet on a quiet machine.
`--render` writes the results of all finished rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from in_memory import InMemory
from methods import backbone_only
from operating_points import accuracy, chosen_points, measured, outputs_of, swept
from reproduction_page import write
from reproduction_rows import ROWS, Row
from safetensors.torch import load_file
from schedules import rescheduled
from torch import nn

import leenet_fx
from leenet_fx.calibration.cached_outputs import CachedOutputs, compute_outputs
from leenet_fx.calibration.class_thresholds import fit_class_thresholds
from leenet_fx.cost.page_faults import keep_memory
from leenet_fx.environment import device_name
from leenet_fx.evaluation.method_run import phase_epochs
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.objectives import soft_probabilities
from leenet_fx.storage.files import write_atomically
from leenet_fx.training.sanity import extremes_expected

PARTIAL = Path(__file__).parent / "fitted" / "reproduction"
EXAMPLES = Path(__file__).parents[1] / "examples"
PRECISIONS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
"""Of CalexNet's thresholds for each class."""

SIZE = {"cifar10": 32, "imagenette": 160}
LARGEST_BATCH = {"cifar10": 1024, "imagenette": 64}
TIMED = (32, 1)
"""Batch sizes of `--time`."""

TIMED_IMAGES = 128


def network(row: Row, weights: Path) -> nn.Module:
    """Return a row's backbone, with its trained weights if there are any."""
    if row.network == "msdnet":
        torch.manual_seed(0)
        return leenet_fx.create_model(f"{EXAMPLES / 'msdnet.py'}:msdnet").eval()
    if row.network in ("resnet20", "resnet56"):
        model = leenet_fx.create_model(f"{EXAMPLES / 'cifar_resnet.py'}:{row.network}")
        file = weights / f"{row.network}_cifar10.safetensors"
    elif row.network == "lite0":
        model = leenet_fx.create_model("timm/tf_efficientnet_lite0")
        file = weights / "tf_efficientnet_lite0.safetensors"
    else:
        model = leenet_fx.create_model("timm/mobilenetv2_100", pad_type="same")
        file = weights / "mobilenetv2_100_coral.safetensors"
    model.load_state_dict(load_file(file))
    return model.eval()


def method_of(row: Row) -> leenet_fx.Method:
    """Return the method of a row."""
    alone = row.method == "backbone-only"
    method = backbone_only() if alone else leenet_fx.get_method(row.method, **row.options)
    return rescheduled(method, row.joint_lr, row.joint_decay)


def attached(row: Row, model: nn.Module, classes: int) -> leenet_fx.EarlyExitModule:
    """Return an untrained network of a row, on the CPU."""
    method = method_of(row)
    strategy: Any = list(row.exits)
    num_exits = None
    if len(row.exits) == 2 and isinstance(row.exits[1], int):
        strategy, num_exits = row.exits
    branch: Any = row.branch
    if row.network == "msdnet":
        sys.path.insert(0, str(EXAMPLES))
        from msdnet import coarsest

        branch = coarsest
    size = SIZE[row.data]
    ee = leenet_fx.attach(
        model,
        strategy,
        num_exits=num_exits,
        method=method if row.method != "backbone-only" else None,
        branch=branch,
        branch_options=row.branch_options,
        num_classes=classes,
        example_inputs=torch.zeros(1, 3, size, size),
        name=row.network,
    ).eval()
    # Small convolutions train twice as fast in this memory format.
    return ee.to(memory_format=torch.channels_last)


class Trainer:
    """Trains the network of a row on a device, and measures it on the CPU.

    Args:
        row: what to train.
        data: the images.
        ee: the network.
        batch: number of images of a batch.
        precision: as of `fit`.
    """

    def __init__(
        self,
        row: Row,
        data: InMemory,
        ee: leenet_fx.EarlyExitModule,
        batch: int,
        precision: str | None,
    ) -> None:
        self.row, self.data, self.ee, self.precision = row, data, ee, precision
        self.method = method_of(row)
        self.seconds = 0.0
        joint = self.method.trains_backbone
        batch = min(batch, LARGEST_BATCH[row.data])
        self.caches: dict[str, FeatureCache] = {}
        self.train: Any
        if joint or row.augmented or row.uncached:
            self.train = data.training(seed=0, batch=batch, augment=joint or row.augmented)
            self.calibration: Any = data.loader("calibration", seed=0, batch=batch)
        else:
            ee.to(data.device)
            # The frozen backbone runs once over each split.
            self.caches = {
                split: leenet_fx.cache_features(ee, data.loader(split, seed=0, batch=batch))
                for split in ("train", *data.splits)
            }
            self.train, self.calibration = self.caches["train"], self.caches["calibration"]

    def fit(self, cost_weight: float | None, epochs: Mapping[str, int]) -> None:
        """Train, and record the time."""
        self.ee.to(self.data.device)
        torch.manual_seed(0)
        start = time.perf_counter()
        leenet_fx.fit(
            self.ee,
            self.train,
            calibration=self.calibration,
            method=self.method,
            alpha=cost_weight if self.method.has_gates else None,
            epochs=epochs,
            precision=self.precision,
            progress=False,
        )
        self.seconds += time.perf_counter() - start

    def outputs(self) -> dict[str, CachedOutputs]:
        """Return the outputs of each split, and bring the network to the CPU."""
        if self.caches:
            self.ee.to("cpu")
            return {name: compute_outputs(self.ee, self.caches[name]) for name in self.data.splits}
        self.ee.to(self.data.device)
        found = {name: outputs_of(self.ee, self.data.loader(name)) for name in self.data.splits}
        self.ee.to("cpu")
        return found


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Train a row and return its figures."""
    model = network(row, options.weights)
    data = InMemory(
        options.data / row.data,
        model,
        SIZE[row.data],
        limit=options.images,
        device=options.device,
    )
    ee = attached(row, model, len(data.classes))
    given = {} if row.data == "imagenette" else backbone_accuracy(ee, data)
    trainer = Trainer(row, data, ee, options.batch, options.precision)
    epochs = phase_epochs(trainer.method, row.epochs, ee.spec.classifier_is_new)
    weights: tuple[float | None, ...] = row.cost_weights or (None,)
    if len(epochs) > 1 and len(weights) > 1:
        # Only the last phase depends on the cost weight.
        last = list(epochs)[-1]
        trainer.fit(weights[0], {**epochs, last: 0})
        epochs = {phase: count if phase == last else 0 for phase, count in epochs.items()}
    start = {name: value.clone() for name, value in ee.state_dict().items()}
    found: dict[str, Any] = {"backbone": given, "points": [], "ensembles": []}
    states: dict[float | None, dict[str, torch.Tensor]] = {}
    for weight in weights:
        ee.load_state_dict(start)
        trainer.fit(weight, epochs)
        outputs = trainer.outputs()
        found["final"] = {
            name: accuracy(values.logits[-1], values.labels) for name, values in outputs.items()
        }
        found["exits"] = {
            name: [accuracy(logits, values.labels) for logits in values.logits]
            for name, values in outputs.items()
        }
        found["points"] += points(row, trainer, outputs, weight)
        if row.method == "diffbranch":
            found["ensembles"].append({"cost weight": weight, **ensembles(ee, outputs)})
        states[weight] = {name: value.clone() for name, value in ee.exits.state_dict().items()}
    found["flops"] = ee.spec.profile.flops
    found["seconds"] = trainer.seconds
    if options.time:
        limit = found["final"]["calibration"]
        shown = chosen_points(found["points"], row.at_cost, row.at_drop, limit)
        weights = {point["cost weight"] for point in shown if point["rule"] == "own"}
        found["times"] = times(ee, data, {weight: states[weight] for weight in weights})
    return found


def backbone_accuracy(ee: leenet_fx.EarlyExitModule, data: InMemory) -> dict[str, float]:
    """Return the accuracy of the backbone as given, by split."""
    ee.to(data.device)
    found = {}
    for name in data.splits:
        values = outputs_of(ee, data.loader(name))
        found[name] = accuracy(values.logits[-1], values.labels)
    ee.to("cpu")
    return found


def points(
    row: Row, trainer: Trainer, outputs: Mapping[str, CachedOutputs], weight: float | None
) -> list[dict[str, Any]]:
    """Return the points of a trained network, by the method's own rule and by thresholds."""
    ee = trainer.ee
    counted = dict(outputs)
    if row.agreement:
        counted = {k: replace(v, labels=v.logits[-1].argmax(1)) for k, v in outputs.items()}
    if row.method == "backbone-only":
        policies = [(leenet_fx.NeverExit(), 0.0, "own")]
    else:
        found = own_rule(row, ee, counted["calibration"], weight) if row.own_rule else []
        policies = [(*one, "own") for one in found]
        policies += [(*one, "swept") for one in swept(ee, trainer.method, counted["calibration"])]
    return [
        {"rule": rule, "value": value, "cost weight": weight}
        | measured(ee, policy, counted, row.accounting)
        for policy, value, rule in policies
    ]


def own_rule(
    row: Row, ee: leenet_fx.EarlyExitModule, outputs: CachedOutputs, weight: float | None
) -> list[tuple[leenet_fx.Policy, float]]:
    """Return the policies of the method's own rule on the calibration split."""
    if row.method == "calexnet":
        return [(fit_class_thresholds(ee, outputs, at), at) for at in PRECISIONS]
    return [(ee.policy, 0.0 if weight is None else weight)]


def ensembles(
    ee: leenet_fx.EarlyExitModule, outputs: Mapping[str, CachedOutputs]
) -> dict[str, float]:
    """Return the accuracy of the soft output of differentiable branching, by split."""
    return {
        name: accuracy(
            soft_probabilities(values.logits, values.gate_logits(ee, None)), values.labels
        )
        for name, values in outputs.items()
    }


def times(
    ee: leenet_fx.EarlyExitModule,
    data: InMemory,
    states: Mapping[float | None, Mapping[str, torch.Tensor]],
) -> list[dict[str, Any]]:
    """Return measured times relative to the backbone's, for each cost weight."""
    found = []
    split = data.splits[-1]
    for weight, state in states.items():
        ee.exits.load_state_dict(dict(state))
        for batch in TIMED:
            loader = data.loader(split, batch=batch)
            images = list(loader)[: TIMED_IMAGES // batch]
            result = leenet_fx.evaluate(ee, images)
            found.append(
                {
                    "cost weight": weight,
                    "batch": batch,
                    "images": result.samples,
                    "time": result.seconds / result.backbone_seconds,
                    "flops": result.relative_flops,
                    "backbone ms per image": 1000 * result.backbone_seconds / result.samples,
                }
            )
    return found


def shortened(row: Row, options: argparse.Namespace) -> Row:
    """Return a row with at most `--epochs` epochs of each phase."""
    if options.epochs is None:
        return row
    most = options.epochs
    if isinstance(row.epochs, int):
        return replace(row, epochs=min(row.epochs, most))
    return replace(row, epochs={phase: min(n, most) for phase, n in row.epochs.items()})


def main() -> None:
    """Measure the rows that are not finished, or write the results of all that are."""
    parser = argparse.ArgumentParser(description="Methods in the regime of their papers.")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, help="at most so many epochs of each phase")
    parser.add_argument("--images", type=int, help="at most so many images of each split")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", help="of training, as of `fit`")
    parser.add_argument("--partial", type=Path, default=PARTIAL, help="folder of finished rows")
    parser.add_argument("--time", action="store_true", help="measure times, too")
    parser.add_argument("--render", action="store_true", help="write the results, train nothing")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return
    if options.render:
        write(options.partial)
        return
    for path in (options.data, options.weights):
        if path is None or not path.exists():
            sys.exit(f"Skipped: needs '{path}'.")
    keep_memory()
    options.partial.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.rows if not finish(name, options)]
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


def finish(name: str, options: argparse.Namespace) -> bool:
    """Measure a row unless it is finished, and keep it; return whether that succeeded."""
    row = shortened(ROWS[name], options)
    settings = json.loads(json.dumps({**asdict(row), "images": options.images}))
    given = {"batch": options.batch, "precision": options.precision}
    file = options.partial / f"{name}.json"
    if file.exists():
        stored = json.loads(file.read_text())
        if stored["settings"] == settings and (not options.time or "times" in stored):
            return True
    start = time.perf_counter()
    try:
        with extremes_expected():
            found = measure(row, options)
    except Exception:
        traceback.print_exc()
        return False
    found |= {
        "settings": settings,
        "given": given,
        "device": device_name(options.device),
        "elapsed": time.perf_counter() - start,
    }
    write_atomically(file, json.dumps(found))
    print(f"{name}: {found['elapsed']:.0f} s", file=sys.stderr, flush=True)
    return True


if __name__ == "__main__":
    main()
