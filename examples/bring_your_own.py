"""Exits on an unusual network: the arguments of `attach` that it needs, and why.

    python examples/bring_your_own.py

Trained on digits, about a minute on 2 cores; --quick takes seconds.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leenet_fx
from leenet_fx.data.digits import Digits, load_digits


class Cell(nn.Module):
    """A convolution with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + F.relu(self.norm(self.conv(x)))


class OddNet(nn.Module):
    """Cells, then a cosine classifier; takes a second input and returns a dictionary."""

    def __init__(self, channels: int = 32, cells: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.cells = nn.ModuleList(Cell(channels) for _ in range(cells))
        self.prototypes = nn.Parameter(0.1 * torch.randn(num_classes, channels * 16))
        self.brightness = nn.Linear(channels * 16, 1)

    def forward(self, images: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return logits (B, classes), and the estimated mean brightness (B,).

        Args:
            images: (B, 1, 32, 32).
            mask: (B, 1, 32, 32), factor of each pixel; None for 1.
        """
        if mask is not None:
            images = images * mask
        x = self.stem(images)
        for cell in self.cells:
            x = cell(x)
        x = F.max_pool2d(x, 4)
        x = x.reshape(x.size(0), -1)
        cosine = F.normalize(x, dim=1) @ F.normalize(self.prototypes, dim=1).T
        return {"brightness": self.brightness(x).squeeze(1), "logits": 20 * cosine}


def train(model: nn.Module, digits: Digits, epochs: int) -> None:
    """Train the backbone with losses of its own; the library is not involved."""
    batches = digits.loader(64, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=epochs * len(batches)
    )
    model.train()
    for _ in range(epochs):
        for images, labels in batches:
            outputs = model(images, None)
            loss = F.cross_entropy(outputs["logits"], labels)
            loss = loss + F.mse_loss(outputs["brightness"], images.mean((1, 2, 3)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    """Train the network, attach and train exits, and print accuracy and cost."""
    parser = argparse.ArgumentParser(description="Exits on an unusual network.")
    parser.add_argument("--alpha", type=float, default=0.1, help="cost weight, 0 to 1")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch per phase")
    options = parser.parse_args()

    digits = load_digits(seed=0, views=1 if options.quick else 8)
    torch.manual_seed(0)
    model = OddNet()
    train(model, digits["train"], epochs=1 if options.quick else 4)

    ee = leenet_fx.attach(
        model,
        "linear",
        # Exits are placed after cells. By default, blocks are repeated modules of two or more
        # weighted layers; a cell has one. Names are possible too: blocks=["cells.*"].
        blocks=[Cell],
        # The network with exits takes images only; the other arguments are constants. This also
        # decides `if mask is not None`, since a graph has no control flow.
        concrete_args={"mask": None},
        # Costs are counted for this image size, which the network does not specify.
        example_inputs=digits["test"].images[:1],
    )
    print(ee)
    # The dictionary needs no argument ("logits" is used), nor does the cosine classifier: exits
    # have classifiers, and the final classifier is unchanged. Only attach(num_classes=...)
    # needs a linear layer, which it replaces.

    epochs = 1 if options.quick else 10
    shuffle = torch.Generator().manual_seed(0)
    leenet_fx.fit(
        ee,
        digits["train"].loader(64, shuffle),
        # Gates are trained on images that the backbone has not been trained on.
        calibration=digits["calibration"].loader(64, shuffle),
        method="leenet",
        alpha=options.alpha,
        epochs=epochs,
        cache=True,
    )
    print(leenet_fx.evaluate(ee, digits["test"].loader(64)))


if __name__ == "__main__":
    main()
