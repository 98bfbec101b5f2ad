"""Data, networks and small reference implementations that several test files use."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from networks import images, tiny
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import leenet_fx
from leenet_fx import GateThreshold
from leenet_fx.cli import app

CLASSES = 5
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def data(n=96, seed=0, classes=CLASSES):
    """Images whose class is a colour and a place: learnable from early features."""
    labels = torch.arange(n) % classes
    x = images(n, 3, 16, 16, seed=seed) * 0.3
    for i, label in enumerate(labels.tolist()):
        x[i, label % 3, 3 * label : 3 * label + 4, :8] += 2
    return x, labels


def loader(n=96, seed=0, batch_size=16, **options):
    return DataLoader(TensorDataset(*data(n, seed, **options)), batch_size=batch_size)


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options)


def backbone(ee):
    return {k: v.clone() for k, v in ee.state_dict().items() if not k.startswith("exits.")}


def probabilities(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def counter(history):
    """PABEE's loop over exits, one sample."""
    patient, previous = 0, None
    for row in history:
        predicted = row.index(max(row))
        patient = patient + 1 if predicted == previous else 0
        previous = predicted
    return patient


def votes(history):
    return max(Counter(row.index(max(row)) for row in history).values())


def run(*arguments):
    return CliRunner().invoke(app.app, list(arguments))


def fails(capsys, monkeypatch, *arguments):
    """Exit code and what `main` prints for a failing command."""
    monkeypatch.setattr(sys, "argv", ["leenet-fx", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    captured = capsys.readouterr()
    assert captured.out == ""
    return stop.value.code, captured.err


def folder(path, count=20, classes=COLOURS):
    """PNG images of one colour a class; the brightness tells which image it is."""
    for name in classes:
        (path / name).mkdir(parents=True)
        for index in range(count):
            shade = tuple(value * (100 + index) // 255 for value in COLOURS[name])
            Image.new("RGB", (12, 10), shade).save(path / name / f"{index:04}.png")
    return path


def half_leave(ee, x):
    """Gates that let about half of those who arrive leave at each exit."""
    with torch.no_grad():
        gates = ee.all_exits(x).gate_logits
    inside, thresholds = torch.ones(len(x), dtype=torch.bool), []
    for scores in gates.T:
        arrived = scores[inside].sort().values
        middle = len(arrived) // 2
        cut = float(arrived[middle - 1 : middle + 1].mean()) if middle else math.inf
        thresholds.append(cut)
        inside &= scores < cut
    ee.policy = GateThreshold(thresholds)
    return ee


def first(truths):
    """Index of the first that holds; how many there are where none does."""
    return next((index for index, holds in enumerate(truths) if holds), len(truths))


def array(tensor):
    return tensor.detach().double().numpy()


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def entropy(p):
    return -(p * np.log(p)).sum(1)


def shuffled(n=96, seed=0, batch_size=20):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        TensorDataset(*data(n, seed)), batch_size, shuffle=True, generator=generator, drop_last=True
    )


def exits_of(ee):
    return {k: v for k, v in ee.state_dict().items() if k.startswith(("exits.", "fc."))}


def assert_equal(first, second, atol=1e-5):
    first, second = exits_of(first), exits_of(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value.double(), second[key].double(), atol=atol), key


def labels_and_shades(data, split):
    """(label, brightness − 100) of each image of a split of `folder`."""
    pairs = []
    for index in range(len(data.splits[split])):
        image, label = data.splits[split][index]
        pairs.append((label, round(max(image.getpixel((0, 0))) - 100)))
    return pairs


class InterruptedLoader:
    """Yields a number of epochs, then raises KeyboardInterrupt."""

    def __init__(self, epochs):
        self.remaining = epochs

    def __len__(self):
        return len(loader())

    def __iter__(self):
        self.remaining -= 1
        if self.remaining < 0:
            raise KeyboardInterrupt
        return iter(list(loader()))
