"""What the runtime requires of a network with exits."""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor

from leenet_fx.errors import InputError
from leenet_fx.policies import Policy
from leenet_fx.runtime.controller import ExitController
from leenet_fx.runtime.outputs import Prediction
from leenet_fx.runtime.stage_plan import StagePlan, StageWrapper


class NetworkInfo(Protocol):
    """Shapes of images and logits."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, without the batch axis."""

    @property
    def num_classes(self) -> int:
        """Width of the logits."""


class NetworkWithExits(Protocol):
    """A module with exits that runs stage by stage, such as `EarlyExitModule`."""

    training: bool
    policy: Policy

    @property
    def spec(self) -> NetworkInfo:
        """Shapes of images and logits."""

    @property
    def num_exits(self) -> int:
        """N."""

    @property
    def device(self) -> torch.device:
        """Device of the exits."""

    @property
    def stage_plan(self) -> StagePlan:
        """Its stages."""

    @property
    def is_compiled(self) -> bool:
        """Whether its stages are compiled."""

    def controller(self, policy_or_index: Policy | Tensor) -> ExitController:
        """Return a controller for a policy, or for exits (B,)."""

    def check_images(self, images: Tensor) -> None:
        """Raise InputError for images that do not fit."""

    def predict(self, images: Tensor) -> Prediction:
        """Run conditionally under the present policy."""

    def prediction(
        self, logits: Tensor, exit_index: Tensor, *, early_exits_disabled: bool
    ) -> Prediction:
        """Build a prediction from logits (B, classes) and exits (B,)."""

    def with_stage_wrapper(self, wrapper: StageWrapper) -> Self:
        """Return a copy that shares all modules and wraps the functions of its stages."""


def check_network(network: Any, caller: str) -> None:
    """Raise InputError for an object that is no network with exits.

    Args:
        network: the object.
        caller: name of the function that requires it.
    """
    required = ("controller", "stage_plan", "with_stage_wrapper")
    if not all(hasattr(type(network), name) for name in required):
        raise InputError(f"{caller} needs a network with exits, got {type(network).__name__}.")
