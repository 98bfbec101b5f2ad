"""Accuracy of the final classifier that fit trains, beside logistic regression on its inputs.

    python benchmarks/new_classifier.py --data PATH --models PATH

For each network and data set the final classifier is replaced by a new one, which `fit` trains on
cached features of the train split, 10 epochs at its defaults. scikit-learn's logistic regression
(C = 1) is fitted to the same inputs. Accuracies are of the test split.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import leenet_fx
from leenet_fx.cli.options import BackboneOptions
from leenet_fx.cli.setup import build
from leenet_fx.data.splits import open_data
from leenet_fx.data.transforms import make_transform
from leenet_fx.environment import environment
from leenet_fx.features.feature_cache import FeatureCache
from leenet_fx.report.results import Criterion, Result

RESULT = Path(__file__).parent / "results" / "new_classifier.json"
COMMAND = "python benchmarks/new_classifier.py --data PATH --models PATH"
FACTORY = Path(__file__).parents[1] / "examples" / "cifar_resnet.py"
SEEDS = (0, 1, 2)
MARGIN = 0.5
"""Accuracy in points that the classifier of fit may be below logistic regression."""


@dataclass(frozen=True)
class Case:
    """A network, its weights, a data set, and the size of the images."""

    network: str
    weights: str
    data: str
    size: int
    build: Callable[[Path], nn.Module]


def _timm(name: str, **options: Any) -> Callable[[Path], nn.Module]:
    def build_model(weights: Path) -> nn.Module:
        model = timm.create_model(name, **options)
        model.load_state_dict(load_file(weights))
        return model.eval()

    return build_model


def _resnet20(weights: Path) -> nn.Module:
    return build(f"{FACTORY}:resnet20", BackboneOptions(weights=weights))


CASES = (
    Case(
        "tf_efficientnet_lite0",
        "tf_efficientnet_lite0.safetensors",
        "caltech101",
        160,
        _timm("tf_efficientnet_lite0"),
    ),
    Case(
        "mobilenetv2_100",
        "mobilenetv2_100_coral.safetensors",
        "imagenette",
        160,
        _timm("mobilenetv2_100", pad_type="same"),
    ),
    Case("resnet20", "resnet20_cifar10.safetensors", "cifar10", 32, _resnet20),
)


def measure(case: Case, data: Path, models: Path) -> dict[str, Any]:
    """Return the accuracies and times of one network and data set."""
    images = open_data(data / case.data)
    model = case.build(models / case.weights)
    classes = len(images.classes)
    ee = leenet_fx.attach(
        _headless(model, classes),
        num_exits=1,
        example_inputs=torch.zeros(1, 3, case.size, case.size),
        num_classes=classes,
        name=case.network,
    )
    transform = make_transform(model, (3, case.size, case.size))
    shuffle = torch.Generator()
    train = leenet_fx.cache_features(ee, images.loader("train", transform, 64, shuffle=shuffle))
    test = leenet_fx.cache_features(ee, images.loader("test", transform, 256))
    inputs, labels = final_inputs(train)
    test_inputs, test_labels = final_inputs(test)
    regression, regression_seconds = _regression(inputs, labels, test_inputs, test_labels)
    accuracies, seconds = [], []
    initial = ee.state_dict()
    initial = {name: value.clone() for name, value in initial.items()}
    for seed in SEEDS:
        ee.load_state_dict(initial)
        shuffle.manual_seed(seed)
        start = time.perf_counter()
        leenet_fx.fit(ee, train, method="shallow-deep", epochs={"exits": 0, "final": 10}, seed=seed)
        seconds.append(time.perf_counter() - start)
        final = ee.get_submodule(str(ee.spec.final_classifier))
        with torch.no_grad():
            predicted = final(test_inputs).argmax(1)
        accuracies.append(float((predicted == test_labels).double().mean()))
    return {
        "network": case.network,
        "data": case.data,
        "classes": classes,
        "train": len(labels),
        "test": len(test_labels),
        "fit_accuracies": accuracies,
        "fit_seconds": min(seconds),
        "regression_accuracy": regression,
        "regression_seconds": regression_seconds,
    }


def final_inputs(cache: FeatureCache) -> tuple[Tensor, Tensor]:
    """Return the cached inputs of the final classifier (n, k) and the labels (n,)."""
    batches = list(cache.first_view(torch.device("cpu")))
    inputs = [batch.final_inputs for batch in batches if batch.final_inputs is not None]
    return torch.cat(inputs), torch.cat([batch.labels for batch in batches])


def _headless(model: nn.Module, classes: int) -> nn.Module:
    """Return the model with another number of classes than the data set, if it has the same."""
    if (
        isinstance(getattr(model, "linear", None), nn.Linear)
        and model.linear.out_features == classes
    ):
        model.linear = nn.Linear(model.linear.in_features, classes + 1)
    return model


def _regression(
    inputs: Tensor, labels: Tensor, test_inputs: Tensor, test_labels: Tensor
) -> tuple[float, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=300).fit(inputs.numpy(), labels.numpy())
    seconds = time.perf_counter() - start
    return float(fitted.score(test_inputs.numpy(), test_labels.numpy())), seconds


def main() -> None:
    """Run all cases whose files are there, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description="Accuracy of new final classifiers.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    options = parser.parse_args()
    rows, criteria = [], []
    for case in CASES:
        missing = [
            path
            for path in (options.data / case.data, options.models / case.weights)
            if not path.exists()
        ]
        if missing:
            print(f"Skipped {case.network}: no '{missing[0]}'.", file=sys.stderr)
            continue
        row = measure(case, options.data, options.models)
        rows.append(row)
        mean = sum(row["fit_accuracies"]) / len(SEEDS)
        gap = 100 * (row["regression_accuracy"] - mean)
        criteria.append(
            Criterion(
                f"{case.network}, {case.data}: logistic regression − fit",
                gap,
                "points",
                f"≤ {MARGIN}",
                gap <= MARGIN,
            )
        )
        print(f"{case.network}, {case.data}: {row}", file=sys.stderr, flush=True)
    if not rows:
        sys.exit("Nothing was measured: pass the folders of data sets and weights.")
    result = Result(COMMAND, rows, criteria, environment())
    result.write(RESULT, "New final classifiers: fit beside logistic regression", table(rows))


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the Markdown table."""
    return [
        {
            "network": row["network"],
            "data": row["data"],
            "classes": row["classes"],
            "train images": row["train"],
            "test images": row["test"],
            "fit: accuracy %": f"{100 * sum(row['fit_accuracies']) / len(SEEDS):.2f}",
            "lowest–highest": f"{100 * min(row['fit_accuracies']):.2f}–"
            f"{100 * max(row['fit_accuracies']):.2f}",
            "logistic regression: accuracy %": f"{100 * row['regression_accuracy']:.2f}",
            "fit: seconds": f"{row['fit_seconds']:.1f}",
            "logistic regression: seconds": f"{row['regression_seconds']:.1f}",
        }
        for row in rows
    ]


if __name__ == "__main__":
    main()
