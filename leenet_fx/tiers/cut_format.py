"""The remaining samples at a cut as named tensors in messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.export.live_values import CutLayout, TensorSpec, tensor_spec
from leenet_fx.runtime.active_batch import ActiveBatch
from leenet_fx.runtime.controller import ExitController
from leenet_fx.surgery.module import EarlyExitModule
from leenet_fx.tiers.coding import Coding, check_coding, coded_dtype, expand, shrink
from leenet_fx.tiers.messages import Message, MessageError

EXAMPLE_BATCH = 2
"""Batch size of the example that shapes are read from."""

_CARRIED = ("previous_logits", "logits_history", "state")
_RANGES = ".ranges"


class CutFormat:
    """Converts the remaining samples before a stage to a message, and back.

    Only tensors with an axis of samples are sent. Their names, shapes and dtypes, and all that is
    the same for every batch, come from an example that the receiver runs itself, so a message can
    bring nothing else.

    Attributes:
        specs: the tensors of a message.
    """

    def __init__(self, ee: EarlyExitModule, controller: ExitController, stage: int) -> None:
        """Run an example up to a stage.

        Args:
            ee: the network, in evaluation mode.
            controller: of its policy.
            stage: index of the first stage behind the cut; 0 for the images themselves.
        """
        weight = next((p for p in ee.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.float32 if ee.spec.casts_images else weight.dtype
        images = torch.zeros(EXAMPLE_BATCH, *ee.spec.image_shape, dtype=dtype, device=ee.device)
        indices = torch.arange(EXAMPLE_BATCH, device=ee.device)
        active = ActiveBatch((images,), EXAMPLE_BATCH, indices)
        with torch.inference_mode():
            for index in range(stage):
                controller.run(index, active)
        self.device = ee.device
        self._layout: CutLayout | None = None
        self._constants: dict[str, Tensor] = {}
        specs: tuple[TensorSpec, ...] = (tensor_spec("images", images, 0),)
        if stage:
            cut = ee.stage_plan.cuts[stage - 1]
            self._layout = CutLayout(cut, active.live, EXAMPLE_BATCH, "live.")
            specs = self._layout.specs
            tensors = self._layout.flatten(active.live, EXAMPLE_BATCH)
            self._constants = {
                spec.name: tensor
                for spec, tensor in zip(specs, tensors, strict=True)
                if spec.batch_axis is None
            }
        self._live = specs
        carried = {name: getattr(active, name) for name in _CARRIED}
        self._carried = [tensor_spec(k, v, 0) for k, v in carried.items() if v is not None]
        self.specs = tuple(spec for spec in self._live if spec.batch_axis is not None)

    def message(self, active: ActiveBatch, coding: Coding, **fields: Any) -> Message:
        """Return the message of kind "samples" for the remaining samples.

        Args:
            active: the samples, before the stage.
            coding: of live tensors; logits and states of exits are sent unchanged.
            fields: of its header.

        Raises:
            InputError: images of another size than the network was attached for, or values that
                the coding cannot express.
        """
        values: Sequence[Any] = active.live
        if self._layout is not None:
            values = self._layout.flatten(active.live, active.count)
        tensors: dict[str, Tensor] = {}
        orders: dict[str, list[int]] = {}
        for spec, value in zip(self._live, values, strict=True):
            if spec.batch_axis is None:
                continue
            _check(spec, value, active.count, spec.dtype, InputError)
            sent, ranges = shrink(value, spec.batch_axis, coding, spec.name)
            if ranges is not None:
                tensors[spec.name + _RANGES] = ranges.contiguous()
            # Kernels, and so roundings, depend on the memory format.
            order = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
            if order != sorted(order):
                orders[spec.name] = order
            tensors[spec.name] = sent.permute(order).contiguous()
        for spec in self._carried:
            tensors[spec.name] = getattr(active, spec.name).contiguous()
        header = {"count": active.count, "coding": coding, "orders": orders, **fields}
        return Message("samples", header, tensors)

    def samples(self, message: Message) -> ActiveBatch:
        """Return the samples of a message, numbered from 0.

        Raises:
            MessageError: tensors that this cut does not have.
            UnknownNameError: no such coding.
        """
        count = message.fields.get("count")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise MessageError(f"A message needs a number of samples from 1, got {count!r}.")
        coding = check_coding(str(message.fields.get("coding")))
        found = dict(message.tensors)
        live = [
            self._constants[spec.name]
            if spec.batch_axis is None
            else self._received(spec, spec.batch_axis, message, found, count, coding)
            for spec in self._live
        ]
        carried = {}
        for spec in self._carried:
            value = _taken(found, spec.name)
            _check(spec, value, count, spec.dtype, MessageError)
            carried[spec.name] = value.to(self.device)
        if found:
            raise MessageError(f"The message has a tensor '{next(iter(found))}' too many.")
        values = live if self._layout is None else self._layout.restore(live)
        indices = torch.arange(count, device=self.device)
        return ActiveBatch(tuple(values), count, indices, **carried)

    def _received(
        self,
        spec: TensorSpec,
        axis: int,
        message: Message,
        found: dict[str, Tensor],
        count: int,
        coding: Coding,
    ) -> Tensor:
        """Return a tensor as it was before it was coded."""
        value, ndim = _taken(found, spec.name), len(spec.shape)
        order = _order(message.fields.get("orders"), spec.name, ndim)
        if value.ndim == ndim:
            value = value.permute([order.index(i) for i in range(ndim)])
        dtype = coded_dtype(coding, spec.dtype, ndim)
        _check(spec, value, count, dtype, MessageError)
        ranges = None
        if dtype == torch.uint8 and spec.dtype != dtype:
            ranges = _taken(found, spec.name + _RANGES)
            if ranges.shape != (count, 2) or ranges.dtype != torch.float32:
                raise MessageError(f"The ranges of '{spec.name}' are not of shape ({count}, 2).")
            ranges = ranges.to(self.device)
        return expand(value.to(self.device), axis, spec.dtype, ranges)


def _taken(found: dict[str, Tensor], name: str) -> Tensor:
    if name not in found:
        raise MessageError(f"The message lacks the tensor '{name}'.")
    return found.pop(name)


def _order(orders: object, name: str, ndim: int) -> list[int]:
    """Return the order of a tensor's axes in memory.

    Raises:
        MessageError: it is no order of that many axes.
    """
    order = orders.get(name, list(range(ndim))) if isinstance(orders, dict) else None
    if not isinstance(order, list) or not all(type(axis) is int for axis in order):
        raise MessageError(f"The message has no order of the axes of '{name}'.")
    if sorted(order) != list(range(ndim)):
        raise MessageError(f"{order} is no order of the {ndim} axes of '{name}'.")
    return order


def _check(
    spec: TensorSpec, value: Tensor, count: int, dtype: torch.dtype, error: type[InputError]
) -> None:
    """Raise an error unless a tensor has the shape and dtype of the cut."""
    shape = tuple(count if size is None else size for size in spec.shape)
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise error(
            f"Tiers exchange '{spec.name}' as {dtype} of shape {shape}, for images of the size "
            f"that the network was attached for; got {value.dtype} of shape {tuple(value.shape)}."
        )
