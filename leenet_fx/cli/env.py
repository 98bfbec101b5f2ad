"""leenet-fx env: what a bug report needs."""

from __future__ import annotations

from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json


def env(format: FormatOption = Format.human, as_json: JsonFlag = False) -> None:
    """Print versions, device and threads."""
    import torch

    from leenet_fx.environment import environment

    found = environment("cuda" if torch.cuda.is_available() else "cpu")
    if wants_json(format, as_json):
        print_json(found)
        return
    for key, value in found.items():
        print(f"{key:12} {value}")
