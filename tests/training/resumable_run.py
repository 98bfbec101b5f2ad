"""A training run that a test can kill: python resumable_run.py FOLDER WEIGHTS."""

import random
import sys

import torch
from helpers import data
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx


class Noisy(TensorDataset):
    """Images augmented with the global generators, as torchvision and timm do."""

    def __getitem__(self, index):
        x, label = super().__getitem__(index)
        return x + 0.1 * torch.randn(()) + 0.1 * random.random(), label


def main(folder, weights):
    random.seed(0)
    torch.manual_seed(0)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    generator = torch.Generator().manual_seed(3)
    train = DataLoader(Noisy(*data(64)), 16, shuffle=True, generator=generator)
    val = DataLoader(TensorDataset(*data(32, 7)), 16, shuffle=True)
    leenet_fx.fit(
        ee,
        train,
        val,
        epochs=25,
        seed=5,
        out=folder,
        resume=True,
        train_final=True,
        method="leenet",
    )
    torch.save(ee.state_dict(), weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
