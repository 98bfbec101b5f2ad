"""Splits, options and hand-made runs for the tests of comparisons."""

from dataclasses import replace

import torch
from helpers import data
from networks import images
from torch.utils.data import DataLoader, TensorDataset

from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun

OPTIONS = {"epochs": 2, "example_inputs": images(1, 3, 16, 16), "progress": False}


def point(flops, accuracy, shares=(1.0,)):
    return FrontierPoint(flops, accuracy, flops, shares)


def method_run(points, label="a", seed=0, **fields):
    run = MethodRun(label, "leenet", seed, "threshold", 0.9, ("b",), 1.0, tuple(points), "")
    return replace(run, **fields)


def splits():
    """Loaders of train, calibration and test."""
    return loader(64, 0, shuffle=True), loader(48, 1), loader(40, 2)


def loader(n, seed, shuffle=False):
    generator = torch.Generator().manual_seed(99) if shuffle else None
    return DataLoader(TensorDataset(*data(n, seed)), 16, shuffle=shuffle, generator=generator)
