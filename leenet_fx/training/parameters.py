"""Parameters that a phase trains, and copies of their values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.methods.phases import Group, Update
from leenet_fx.surgery.module import EarlyExitModule


@dataclass(frozen=True)
class UpdateParameters:
    """The parameters of one update, by the optimizer settings that suit them.

    Attributes:
        linear: linear in standardized inputs (heads, gates), for Adam.
        necks: of the exits' necks, for SGD.
        backbone: of the backbone, for SGD.
    """

    linear: list[nn.Parameter]
    necks: list[nn.Parameter]
    backbone: list[nn.Parameter]

    def all(self) -> list[nn.Parameter]:
        """Return the parameters of all three kinds."""
        return [*self.linear, *self.necks, *self.backbone]


def update_parameters(
    ee: EarlyExitModule, update: Update, final: nn.Module | None
) -> UpdateParameters:
    """Return the parameters that an update changes.

    Args:
        ee: the network.
        update: of a phase.
        final: the final classifier, if it is trained.
    """
    members = {id(p): p for group in update.parameter_groups for p in _members(ee, group, final)}
    backbone: dict[int, nn.Parameter] = {}
    necks: dict[int, nn.Parameter] = {}
    if "backbone" in update.parameter_groups:
        backbone = {id(p): p for p in ee.backbone_parameters() if p.requires_grad}
    if "classifiers" in update.parameter_groups:
        found = (p for branch in ee.exits.branches() for p in branch.neck_parameters())
        necks = {id(p): p for p in found if id(p) not in backbone}
    linear = [p for key, p in members.items() if key not in necks and key not in backbone]
    return UpdateParameters(linear, list(necks.values()), list(backbone.values()))


def trained_state(
    ee: EarlyExitModule, final: nn.Module | None, *, backbone: bool = False
) -> list[Tensor]:
    """Return every tensor that training may change.

    Args:
        ee: the network.
        final: the final classifier, if it is trained.
        backbone: whether the backbone is trained.
    """
    if backbone:
        return [*ee.parameters(), *ee.buffers()]
    state = [*ee.exits.parameters(), *ee.exits.buffers()]
    if final is not None:
        included = {id(tensor) for tensor in state}
        state += [p for p in final.parameters() if id(p) not in included]
    return state


def evaluation_modules(ee: EarlyExitModule) -> tuple[str, ...]:
    """Return the names of the backbone's modules that the caller froze in evaluation mode.

    If the network is in training mode, these are all modules in evaluation mode. If it is in
    evaluation mode as a whole, they are the modules whose parameters all have requires_grad=False,
    and the modules in them.
    """
    names: list[str] = []
    frozen: list[str] = []
    for name, module in ee.named_modules():
        if not name or name.split(".")[0] == "exits" or module.training:
            continue
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen.append(f"{name}.")
        if ee.training or f"{name}.".startswith(tuple(frozen)):
            names.append(name)
    return tuple(names)


def check_trainable(parameters: Iterable[Tensor], owner: str) -> None:
    """Raise InputError if a parameter has requires_grad=False.

    Args:
        parameters: to be trained.
        owner: what trains them, for the message.
    """
    if not all(parameter.requires_grad for parameter in parameters):
        raise InputError(f"A parameter that {owner} trains has requires_grad=False.")


def snapshot(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return copies of tensors, without gradients."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def restore(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Copy values into tensors in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _members(ee: EarlyExitModule, group: Group, final: nn.Module | None) -> Iterator[nn.Parameter]:
    """Yield the parameters of a group."""
    if group == "final":
        assert final is not None
        yield from final.parameters()
    elif group == "backbone":
        yield from (p for p in ee.backbone_parameters() if p.requires_grad)
        if final is not None:
            # A classifier added to an encoder is not among the backbone's parameters.
            yield from final.parameters()
    for branch in ee.exits.branches():
        if group == "classifiers":
            yield from branch.classifier_parameters()
        elif group == "ensembles":
            yield from branch.ensemble_parameters()
        elif group == "gates":
            yield from branch.gate_parameters()
