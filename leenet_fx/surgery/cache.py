"""Values that a network with exits derives from its graph, weights and spec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from leenet_fx.cost.cost_table import CostTable
from leenet_fx.runtime.controller import ExitController
from leenet_fx.runtime.stage_plan import StagePlan


@dataclass
class Cache:
    """Derived values, each None or empty until it is first needed.

    Attributes:
        stage_plan: the stages.
        controller: the last controller, with the values that it was built from.
        costs: cost tables, by what they depend on.
        images: shape without the batch axis, and dtype, of the last images that were checked.
    """

    stage_plan: StagePlan | None = None
    controller: tuple[tuple[Any, ...], ExitController] | None = None
    costs: dict[Any, CostTable] = field(default_factory=dict)
    images: tuple[torch.Size, torch.dtype] | None = None
