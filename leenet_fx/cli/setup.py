"""Builders of networks and images from command-line options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from leenet_fx.cli.options import (
    BackboneOptions,
    BranchOptions,
    DataSetOptions,
    EpochOptions,
    MethodOptions,
    PlacementOptions,
    ShapeOptions,
)
from leenet_fx.errors import InputError, first_line, placement_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from leenet_fx.data.splits import Data
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
    from leenet_fx.surgery.attach import attach
    from placement import get_strategy

    with placement_errors():
        get_strategy(placement.strategy)
    if placement.at and placement.strategy != "fixed":
        raise typer.BadParameter("--at needs --strategy fixed.")
    network = build(model, backbone or BackboneOptions(), meta=meta, num_classes=shapes.num_classes)
    if device is not None and not meta:
        network.to(known_device(device))
    branches = branches or BranchOptions()
    ee = attach(
        network,
        [_position(text) for text in placement.at] if placement.at else placement.strategy,
        num_exits=placement.num_exits,
        example_inputs=_example(shapes.input_size, meta),
        blocks=placement.block or None,
        branch=branches.branch,
        branch_options=branches.branch_options(),
        method=method,
        num_classes=shapes.num_classes,
        copy=False,
        cost=cost,
        seed=seed,
        name=model,
    )
    return network, ee


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


def open_images(
    ee: EarlyExitModule, backbone: nn.Module, data: str, options: DataSetOptions
) -> tuple[Data, Callable[[Any], Tensor]]:
    """Return the images, and the transform that the backbone expects.

    Args:
        ee: the network with exits.
        backbone: the model that it was made from.
        data: folder, .tar or name of a data set.
        options: how to read it.

    Raises:
        InputError: the numbers of classes of images and network differ.
    """
    from leenet_fx.data.splits import open_data
    from leenet_fx.data.transforms import make_transform

    images = open_data(
        data, root=options.root, download=options.download, skip_bad=options.skip_bad
    )
    count = len(images.classes)
    if count != ee.spec.num_classes:
        raise InputError(
            f"'{data}' has {count} classes, the final classifier of {ee.spec.profile.model} has "
            f"{ee.spec.num_classes}: --num-classes {count} replaces it by a new one, which fit "
            "trains."
        )
    transform = make_transform(backbone, ee.spec.image_shape, name=ee.spec.profile.model)
    return images, transform


def _example(input_size: str | None, meta: bool) -> Any:
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
