"""Builders of networks and images from command-line options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from leenet_fx.cli.options import (
    BackboneOptions,
    BranchOptions,
    EpochOptions,
    MethodOptions,
    PlacementOptions,
    ShapeOptions,
)
from leenet_fx.errors import InputError, first_line, placement_errors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from leenet_fx.methods import Method
    from leenet_fx.surgery.module import EarlyExitModule


def attach_by_name(
    model: str,
    placement: PlacementOptions,
    shapes: ShapeOptions,
    backbone: BackboneOptions | None = None,
    branches: BranchOptions | None = None,
    *,
    method: Method | None = None,
    meta: bool = False,
    cost: str = "flops",
    device: str | None = None,
    seed: int = 0,
) -> tuple[nn.Module, EarlyExitModule]:
    """Build a backbone by name and attach exits to it.

    Args:
        model: name, or path.py:factory.
        placement: where exits are placed.
        shapes: numbers of classes and pixels.
        backbone: weights; None for a random initialisation.
        branches: architecture of the branches; None for the method's.
        method: whose branches are attached where `branches` names none.
        meta: whether to build the model without weights, if only shapes and costs are needed.
        cost: cost that placements count.
        device: of the backbone; None for the device on which it was built.
        seed: random seed of the exits.

    Returns:
        The backbone and the network with exits; they share weights.

    Raises:
        typer.BadParameter: options that do not go together.
        EarlyExitError: as `create_model` and `attach` raise.
    """
    check_placement(placement)
    network = build(model, backbone or BackboneOptions(), meta=meta, num_classes=shapes.num_classes)
    if device is not None and not meta:
        network.to(known_device(device))
    example = example_images(shapes.input_size, meta)
    return network, attach_exits(
        network, model, placement, shapes, branches, example, method=method, cost=cost, seed=seed
    )


def check_placement(placement: PlacementOptions) -> None:
    """Check the options of a placement, which takes no model.

    Raises:
        typer.BadParameter: options that do not go together.
        UnknownNameError: no such strategy.
    """
    from placement import get_strategy

    with placement_errors():
        get_strategy(placement.strategy)
    if placement.at and placement.strategy != "fixed":
        raise typer.BadParameter("--at needs --strategy fixed.")


def attach_exits(
    network: nn.Module,
    model: str,
    placement: PlacementOptions,
    shapes: ShapeOptions,
    branches: BranchOptions | None,
    example: torch.Tensor | None,
    *,
    method: Method | None = None,
    cost: str = "flops",
    seed: int = 0,
) -> EarlyExitModule:
    """Attach exits to a backbone; the result shares its weights unless the method trains them.

    Args:
        network: the backbone.
        model: its name.
        placement: where exits are placed.
        shapes: number of classes.
        branches: architecture of the branches; None for the method's.
        example: a batch of images of the size to count costs for; None takes the model's size.
        method: whose branches are attached where `branches` names none.
        cost: cost that placements count.
        seed: random seed of the exits.

    Raises:
        EarlyExitError: as `attach` raises.
    """
    from leenet_fx.surgery.attach import attach

    branches = branches or BranchOptions()
    return attach(
        network,
        [_position(text) for text in placement.at] if placement.at else placement.strategy,
        num_exits=placement.num_exits,
        example_inputs=example,
        blocks=placement.block or None,
        branch=branches.branch,
        branch_options=branches.branch_options(),
        method=method,
        num_classes=shapes.num_classes,
        copy=method is not None and method.trains_backbone,
        cost=cost,
        seed=seed,
        name=model,
    )


def known_device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        InputError: the device does not exist on this machine.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"No device '{name}' on this machine: {first_line(error)}") from error
    return device


def measure_if_timed(ee: EarlyExitModule, cost: str) -> None:
    """Measure the latency of a network if its cost is counted in seconds."""
    if cost == "seconds":
        from leenet_fx.cost.measure import profile

        profile(ee)


def build(
    model: str, backbone: BackboneOptions, *, meta: bool = False, num_classes: int | None = None
) -> nn.Module:
    """Return a backbone by name, in evaluation mode.

    Args:
        model: name, or path.py:factory.
        backbone: its weights.
        meta: whether to build it without weights.
        num_classes: number of classes that `backbone.weights` may be for, if not the model's own.
    """
    from leenet_fx.graph.catalog import create_model
    from leenet_fx.storage.backbone_weights import ClassCountError, load_backbone_weights

    network: nn.Module
    try:
        network = create_model(
            model, device="meta" if meta else None, pretrained=backbone.pretrained
        )
    except (RuntimeError, NotImplementedError):
        if not meta:
            raise
        # The constructors of some models compute with weights.
        network = create_model(model)
    if backbone.weights is not None:
        try:
            load_backbone_weights(network, backbone.weights)
        except ClassCountError as error:
            if error.found != num_classes or ".py:" in model:
                raise
            network = create_model(model, num_classes=num_classes)
            load_backbone_weights(network, backbone.weights)
    return network.eval()


def phase_epochs(ee: EarlyExitModule, method: Method, length: EpochOptions) -> dict[str, int]:
    """Return the number of epochs of each phase that has something to train.

    The final classifier is trained only if it was replaced.
    """
    lengths = {}
    for phase in method.phases:
        if phase.parameter_groups == {"gates"} and length.gate_epochs is not None:
            lengths[phase.name] = length.gate_epochs
        elif phase.parameter_groups != {"final"} or ee.spec.classifier_is_new:
            lengths[phase.name] = length.epochs
    return lengths


def method_with_options(training: MethodOptions) -> Method:
    """Return a method with its options; values are read as YAML.

    Raises:
        InputError: an option is not of the form NAME=VALUE.
        UnknownNameError: the method is unknown, or does not take the option.
    """
    import yaml

    from leenet_fx.methods import get_method

    options: dict[str, Any] = {}
    for text in training.option or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--option must be like recipe=joint, got '{text}'.")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--option {text}: {first_line(error)}") from error
    return get_method(training.method, **options)


def example_images(input_size: str | None, meta: bool = False) -> torch.Tensor | None:
    """Return a batch of one image of a size like `3x224x224`; None for None.

    Args:
        input_size: from the command line.
        meta: whether to allocate no memory.

    Raises:
        typer.BadParameter: another form.
    """
    if input_size is None:
        return None
    import torch

    parts = input_size.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input-size must be like 3x224x224, got '{input_size}'.")
    return torch.zeros(1, *map(int, parts), device="meta" if meta else None)


def _position(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
