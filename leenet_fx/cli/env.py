"""leenet-fx env: the environment, for bug reports."""

from __future__ import annotations

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json


@o.expand_options
def env(output: o.OutputOptions) -> None:
    """Print versions, device and number of threads."""
    import torch

    from leenet_fx.environment import environment

    values = environment("cuda" if torch.cuda.is_available() else "cpu")
    if output.is_json:
        print_json(values)
        return
    for key, value in values.items():
        print(f"{key:12} {value}")
