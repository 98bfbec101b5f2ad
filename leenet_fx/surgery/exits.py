"""The branches of a network with exits, and its policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import NeverExit, Policy, policy_from_dict, policy_to_dict


class Exits(nn.ModuleList):
    """The branches, and the policy, which is part of the state dict.

    A classifier that `attach` added to an encoder is stored beside the branches as `final`.
    """

    def __init__(self, branches: list[Branch], final: nn.Module | None = None) -> None:
        super().__init__(branches)
        if final is not None:
            self.final = final
        self.policy: Policy = NeverExit()

    def __len__(self) -> int:
        return len(self._modules) - ("final" in self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self._modules[name] for name in self._modules if name != "final"])

    def branches(self) -> Iterator[Branch]:
        """Yield the branches in order."""
        return cast(Iterator[Branch], iter(self))

    def get_extra_state(self) -> Tensor:
        """Return the policy as JSON in a tensor of bytes, which safetensors can store."""
        encoded = json.dumps(policy_to_dict(self.policy)).encode()
        return torch.tensor(list(encoded), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Set the policy that `get_extra_state` encoded; raises as `read_policy` does."""
        self.policy = self.read_policy(state)

    def read_policy(self, state: Any) -> Policy:
        """Decode the policy that `get_extra_state` encoded.

        Raises:
            InputError: not a policy, or one for another number of exits.
        """
        try:
            data = json.loads(bytes(state.tolist()))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError("'exits._extra_state' is no encoded policy.") from error
        policy = policy_from_dict(data)
        policy.check(len(self))
        return policy
