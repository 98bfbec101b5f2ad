"""From options to a network with exits and its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leenet_fx.errors import InputError, StorageError, first_line, placement_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from leenet_fx.data.splits import Data
    from leenet_fx.methods import Method
    from leenet_fx.surgery.module import EarlyExitModule


def attach_by_name(
    model: str,
    *,
    strategy: str,
    num_exits: int | None = None,
    at: list[str] | None = None,
    block: list[str] | None = None,
    branch: str | None = None,
    head: str | None = None,
    gate: str | None = None,
    conv_blocks: int | None = None,
    method: Method | None = None,
    num_classes: int | None = None,
    input_size: str | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    meta: bool = False,
    cost: str = "flops",
    device: str | None = None,
    seed: int = 0,
    name: str | None = None,
) -> tuple[nn.Module, EarlyExitModule]:
    """Builds a backbone by name and puts exits into it.

    Args:
        head, gate, conv_blocks: options of branches; None leaves them out.
        method: whose branches to take where none are named.
        meta: whether to do without weights, where only shapes and costs are asked for.
        cost: what placements count.
        device: where the backbone goes; None leaves it where it was built.
        name: what tables call it; None takes `model`.

    Returns:
        The backbone and the network with exits; they share weights.
    """
    from leenet_fx.surgery.attach import attach
    from placement import get_strategy

    with placement_errors():
        get_strategy(strategy)
    if at and strategy != "fixed":
        raise typer.BadParameter("--at goes with --strategy fixed.")
    network = build(model, pretrained=pretrained, weights=weights, meta=meta)
    if device is not None and not meta:
        network.to(known_device(device))
    made = attach(
        network,
        [_position(text) for text in at] if at else strategy,
        num_exits=num_exits,
        example_inputs=_example(input_size, meta),
        blocks=block or None,
        branch=branch,
        branch_options={
            name: value
            for name, value in (("head", head), ("gate", gate), ("blocks", conv_blocks))
            if value is not None
        },
        method=method,
        num_classes=num_classes,
        copy=False,
        cost=cost,
        seed=seed,
        name=name or model,
    )
    return network, made


def known_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        InputError: no such device, or none here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"No device '{name}' here: {first_line(error)}") from error
    return device


def measure_for(ee: EarlyExitModule, cost: str) -> None:
    """Measures a network whose cost is to be counted in seconds."""
    if cost == "seconds":
        from leenet_fx.cost.measure import profile

        profile(ee)


def build(
    model: str, *, pretrained: bool = False, weights: Path | None = None, meta: bool = False
) -> nn.Module:
    """A backbone by name, in evaluation mode."""
    from leenet_fx.graph.catalog import create_model

    network: nn.Module
    try:
        network = create_model(model, device="meta" if meta else None, pretrained=pretrained)
    except (RuntimeError, NotImplementedError):
        if not meta:
            raise
        # Some models compute with their weights while they are built.
        network = create_model(model)
    if weights is not None:
        load_weights(network, weights)
    return network.eval()


def step_epochs(
    ee: EarlyExitModule, method: Method, epochs: int, gate_epochs: int | None
) -> dict[str, int]:
    """Epochs of each step that there is: a final classifier is trained where it is new."""
    lengths = {}
    for phase in method.phases:
        if phase.parameter_groups == {"gates"} and gate_epochs is not None:
            lengths[phase.name] = gate_epochs
        elif phase.parameter_groups != {"final"} or ee.spec.classifier_is_new:
            lengths[phase.name] = epochs
    return lengths


def method_with_options(method: str, given: list[str] | None) -> Method:
    """`NAME=VALUE` texts as options of a method; values are read as YAML reads them.

    Raises:
        InputError, UnknownNameError: not of that form, or not an option of the method.
    """
    import yaml

    from leenet_fx.methods import get_method

    options: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--option is like recipe=joint, got '{text}'.")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--option {text}: {first_line(error)}") from error
    return get_method(method, **options)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict; reading it runs no code from the file.

    Raises:
        StorageError: the file cannot be read, or its names or shapes are not the model's.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise StorageError(f"No weights '{path}'.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise StorageError(f"Weights '{path}' cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise StorageError(f"Weights '{path}' are no state dict, but {type(state).__name__}.")
    expected = model.state_dict()
    for name in [*expected, *state]:
        shapes = [tuple(d[name].shape) if name in d else "nothing" for d in (expected, state)]
        if shapes[0] != shapes[1]:
            raise StorageError(
                f"Weights '{path}': '{name}': expected {shapes[0]}, found {shapes[1]}."
            )
    model.load_state_dict(state)


def open_images(
    ee: EarlyExitModule, backbone: nn.Module, where: str, root: Path, download: bool, skip_bad: bool
) -> tuple[Data, Callable[[Any], Tensor]]:
    """The images, and the transform the backbone expects.

    Raises:
        InputError: the images have more classes than the head, or fewer.
    """
    from leenet_fx.data.splits import open_data
    from leenet_fx.data.transforms import make_transform

    data = open_data(where, root=root, download=download, skip_bad=skip_bad)
    if len(data.classes) != ee.spec.num_classes:
        raise InputError(
            f"'{where}' has {len(data.classes)} classes, the head of {ee.spec.profile.model} "
            f"{ee.spec.num_classes}: --num-classes {len(data.classes)} puts a new head in its "
            "place, which fit trains."
        )
    transform = make_transform(backbone, ee.spec.image_shape, name=ee.spec.profile.model)
    return data, transform


def _example(input_size: str | None, meta: bool) -> Any:
    if input_size is None:
        return None
    import torch

    parts = input_size.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input-size is like 3x224x224, got '{input_size}'.")
    return torch.zeros(1, *map(int, parts), device="meta" if meta else None)


def _position(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
