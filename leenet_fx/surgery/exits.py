"""The branches of a network with exits, and its policy."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.graph import compat
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import NeverExit, Policy, ThresholdPolicy, policy_from_dict

logger = logging.getLogger("leenet_fx")

INFINITE = 2.0**1000
"""Stands for an infinite threshold in the buffer: averages of it with itself are not NaN."""

OLD_POLICY = "_extra_state"
"""Entry of older state dicts that holds the policy, encoded as JSON."""


class Exits(nn.ModuleList):
    """The branches, and the policy.

    The policy's thresholds are the buffer `thresholds`, (N,) float64, so that they follow whatever
    copies, averages or broadcasts state dicts; its kind and other options are not in the state
    dict. ±`INFINITE` stands for ±inf; policies without thresholds have `INFINITE` everywhere.

    A classifier that `attach` added to an encoder is stored beside the branches as `final`.
    """

    thresholds: Tensor
    _policy: Policy
    _encoded: list[float]
    _seen: tuple[int, int | None]

    def __init__(self, branches: list[Branch], final: nn.Module | None = None) -> None:
        super().__init__(branches)
        if final is not None:
            self.final = final
        with torch.inference_mode(False):
            self.register_buffer("thresholds", torch.empty(len(branches), dtype=torch.float64))
        self.policy = NeverExit()

    def __len__(self) -> int:
        return len(self._modules) - ("final" in self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self._modules[name] for name in self._modules if name != "final"])

    def branches(self) -> Iterator[Branch]:
        """Yield the branches in order."""
        return cast(Iterator[Branch], iter(self))

    @property
    def policy(self) -> Policy:
        """The policy, with the thresholds that are in the buffer.

        Raises:
            InputError: the buffer was changed to values that are no thresholds of the policy.
        """
        policy: Policy = self._policy
        buffer = cast(Tensor, self._buffers["thresholds"])
        # While a program is compiled or exported, buffers have no values.
        if torch.compiler.is_compiling() or type(buffer) is not Tensor or buffer.is_meta:
            return policy
        if not buffer.is_cpu:
            # Reading the values would synchronise with the device.
            version = compat.version(buffer)
            if version is not None and self._seen == (id(buffer), version):
                return policy
            self._seen = (id(buffer), version)
        values = buffer.tolist()
        if values != self._encoded:
            if isinstance(policy, ThresholdPolicy):
                policy = policy.with_thresholds([_decoded(value) for value in values])
            self._policy, self._encoded = policy, values
        return policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        values = encoded_thresholds(policy, len(self))
        buffer = cast(Tensor, self._buffers["thresholds"])
        if buffer.is_inference() and not torch.is_inference_mode_enabled():
            buffer = self._buffers["thresholds"] = torch.empty_like(buffer)
        if not buffer.is_meta:
            with torch.no_grad():
                buffer.copy_(torch.tensor(values, dtype=torch.float64))
        self._policy, self._encoded = policy, values
        self._seen = (id(buffer), compat.version(buffer))

    def read_policy(self, state: Mapping[str, Any]) -> Policy:
        """Return the policy that the network has once a state dict is loaded.

        Args:
            state: of the whole network; may be of the form that held the policy as encoded JSON.

        Raises:
            InputError: no policy, or one for another number of exits.
        """
        policy, names = self.policy, ("exits.thresholds", f"exits.{OLD_POLICY}")
        if names[0] in state:
            policy = self._with_buffer(state[names[0]])
        elif names[1] in state:
            policy = _decode_policy(state[names[1]])
        policy.check(len(self))
        return policy

    def _with_buffer(self, buffer: Any) -> Policy:
        expected = (len(self),)
        if not isinstance(buffer, Tensor) or tuple(buffer.shape) != expected:
            found = tuple(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
            raise InputError(
                f"'exits.thresholds': the state dict has {found}, but the network has {len(self)} "
                f"exits: expected shape {expected}."
            )
        policy = self.policy
        if buffer.is_meta or not isinstance(policy, ThresholdPolicy):
            return policy
        return policy.with_thresholds([_decoded(value) for value in buffer.double().tolist()])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        old, key = state_dict.pop(prefix + OLD_POLICY, None), f"{prefix}thresholds"
        if old is not None:
            self.policy = _decode_policy(old)
            state_dict[key] = self.thresholds
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.thresholds.dtype is not torch.float64:
            # `assign=True` keeps the dtype of the state dict.
            self._buffers["thresholds"] = self.thresholds.double()
        if isinstance(self.policy, ThresholdPolicy) or state_dict.get(key, self.thresholds).is_meta:
            return
        if self.thresholds.tolist() != [INFINITE] * len(self):
            logger.warning(
                "The state dict has thresholds, which the policy %r does not use: set ee.policy to "
                "a policy of their kind, or keep networks with leenet_fx.save and leenet_fx.load.",
                self.policy,
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply a conversion; thresholds change their device, but neither dtype nor value."""
        policy = self.policy
        buffer = cast(Tensor, self._buffers.pop("thresholds"))
        super()._apply(fn, recurse)
        try:
            moved = fn(buffer)
        except TypeError:
            # A device without float64, such as mps.
            moved = buffer
        if moved.dtype is not torch.float64:
            moved = torch.empty_like(buffer, device=moved.device)
        self._buffers["thresholds"] = moved
        self.policy = policy
        return self


def encoded_thresholds(policy: Policy, num_exits: int) -> list[float]:
    """Return N finite numbers, the content of the buffer of thresholds.

    Args:
        policy: with N thresholds, one for all exits, or none.
        num_exits: N.
    """
    if not isinstance(policy, ThresholdPolicy):
        return [INFINITE] * num_exits
    values: Sequence[float] = [policy.threshold_at(index) for index in range(num_exits)]
    return [math.copysign(INFINITE, v) if math.isinf(v) else v for v in values]


def _decoded(value: float) -> float:
    # Averages of INFINITE with itself may differ from it by rounding.
    return math.copysign(math.inf, value) if abs(value) > INFINITE / 2 else value


def _decode_policy(state: Any) -> Policy:
    try:
        data = json.loads(bytes(state.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"'exits.{OLD_POLICY}' is no encoded policy.") from error
    return policy_from_dict(data)
