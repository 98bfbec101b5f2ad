"""Exits on a network of your own, with an odd head: what `attach` has to be told, and why.

    python examples/bring_your_own.py

Trained here on digits, about a minute on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leenet_fx
from leenet_fx.data.digits import Digits, load_digits


class Cell(nn.Module):
    """A convolution beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        return x + F.relu(self.norm(self.conv(x)))


class OddNet(nn.Module):
    """Cells, then a cosine classifier; takes a second input and answers with a dictionary."""

    def __init__(self, channels: int = 32, cells: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.cells = nn.ModuleList(Cell(channels) for _ in range(cells))
        self.prototypes = nn.Parameter(0.1 * torch.randn(num_classes, channels * 16))
        self.ink = nn.Linear(channels * 16, 1)

    def forward(self, images: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Logits (B, classes), and how much ink there is (B,).

        Args:
            images: (B, 1, 32, 32).
            mask: (B, 1, 32, 32), which pixels count; None for all.
        """
        if mask is not None:
            images = images * mask
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x)
        x = F.max_pool2d(x, 4)
        x = x.reshape(x.size(0), -1)
        cosine = F.normalize(x, dim=1) @ F.normalize(self.prototypes, dim=1).T
        return {"ink": self.ink(x).squeeze(1), "logits": 20 * cosine}


def train(model: nn.Module, digits: Digits, epochs: int) -> None:
    """Your own training, with your own losses: the library has no part in it."""
    batches = digits.loader(64, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=epochs * len(batches)
    )
    model.train()
    for _ in range(epochs):
        for images, labels in batches:
            found = model(images, None)
            loss = F.cross_entropy(found["logits"], labels)
            loss = loss + F.mse_loss(found["ink"], images.mean((1, 2, 3)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    """Trains the network, adds exits, and prints what they save."""
    parser = argparse.ArgumentParser(description="Exits on a network of your own.")
    parser.add_argument("--alpha", type=float, default=0.1, help="weight of cost against error")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch each")
    options = parser.parse_args()

    digits = load_digits(seed=0, views=1 if options.quick else 8)
    torch.manual_seed(0)
    model = OddNet()
    train(model, digits["train"], epochs=1 if options.quick else 4)

    ee = leenet_fx.attach(
        model,
        "linear",
        # Exits stand behind cells. By itself the library looks for repeated blocks of two or more
        # weighted layers; these have one each. Names do as well: blocks=["cells.*"].
        blocks=[Cell],
        # The network with exits takes images only; every other argument is fixed here, which also
        # settles `if mask is not None`, for a graph cannot branch on its inputs.
        concrete_args={"mask": None},
        # The size of the images, which this network says nowhere; costs are counted for it.
        example_inputs=digits["test"].images[:1],
    )
    print(ee)
    # Nothing to say about the dictionary ("logits" is taken), and nothing about the cosine
    # classifier: exits bring classifiers of their own, the network's last one stays as it is.
    # Only attach(num_classes=...) needs a linear layer there, which it replaces.

    epochs = 1 if options.quick else 10
    shuffle = torch.Generator().manual_seed(0)
    leenet_fx.fit(
        ee,
        digits["train"].loader(64, shuffle),
        # Gates are fitted on images that the network has not learned by heart.
        calibration=digits["calibration"].loader(64, shuffle),
        method="leenet",
        alpha=options.alpha,
        epochs=epochs,
        cache=True,
    )
    print(leenet_fx.evaluate(ee, digits["test"].loader(64)))


if __name__ == "__main__":
    main()
