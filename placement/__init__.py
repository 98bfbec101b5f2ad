"""Which boundaries of a network get an exit. Pure Python and networkx; knows nothing of torch."""

from placement.cost_profile import UNIT, Candidate, CostProfile, Placement
from placement.errors import PlacementError, UnknownNameError
from placement.strategies import (
    default_num_exits,
    every,
    fine,
    fixed,
    get_strategy,
    golden,
    linear,
    list_strategies,
    pareto,
    place,
    register_strategy,
)

__all__ = [
    "UNIT",
    "Candidate",
    "CostProfile",
    "Placement",
    "PlacementError",
    "UnknownNameError",
    "default_num_exits",
    "every",
    "fine",
    "fixed",
    "get_strategy",
    "golden",
    "linear",
    "list_strategies",
    "pareto",
    "place",
    "register_strategy",
]
