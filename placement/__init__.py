"""Placement of exits at the block boundaries of a network. Independent of torch."""

from placement.class_specific import class_specific
from placement.cost_profile import UNIT, Candidate, CostProfile, Placement
from placement.errors import PlacementError, UnknownNameError
from placement.hapi import hapi
from placement.partition import Link, Partition, Tier, choose_cuts
from placement.selection import Selection, select_exits
from placement.strategies import (
    auto,
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
    "Link",
    "Partition",
    "Placement",
    "PlacementError",
    "Selection",
    "Tier",
    "UnknownNameError",
    "auto",
    "choose_cuts",
    "class_specific",
    "default_num_exits",
    "every",
    "fine",
    "fixed",
    "get_strategy",
    "golden",
    "hapi",
    "linear",
    "list_strategies",
    "pareto",
    "place",
    "register_strategy",
    "select_exits",
]
