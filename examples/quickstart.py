"""A trained model, attach, fit, calibrate, evaluate.

    python examples/quickstart.py

Real images (scikit-learn's digits on a canvas), no download, about two minutes on 2 cores.
"""

from __future__ import annotations

import argparse

import torch

import leenet_fx
from leenet_fx.data.digits import load_digits
from leenet_fx.demo.run import train_backbone


def main() -> None:
    """Train a backbone, attach and train exits, choose thresholds, and print accuracy and cost."""
    parser = argparse.ArgumentParser(description="Early exits on a small network.")
    parser.add_argument(
        "--views", type=int, default=16, help="number of random placements of each training digit"
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.02, help="highest accepted loss of accuracy"
    )
    options = parser.parse_args()

    digits = load_digits(seed=0, views=options.views)
    shuffle = torch.Generator().manual_seed(0)
    model = train_backbone(digits["train"], epochs=2, seed=0)

    ee = leenet_fx.attach(model, example_inputs=digits["train"].images[:1])
    print(ee)

    leenet_fx.fit(ee, digits["train"].loader(64, shuffle), cache=True)
    # Images that nothing was fitted to.
    held_out = digits["calibration"].loader(64, shuffle)
    print(leenet_fx.calibrate(ee, held_out, max_drop=options.max_drop))
    print(leenet_fx.evaluate(ee, digits["test"].loader(64), backbone=model))


if __name__ == "__main__":
    main()
