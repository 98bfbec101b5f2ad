"""Strategies that choose the boundaries that get an exit, from a cost profile alone."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TypeAlias

from placement.cost_profile import CostProfile, Placement
from placement.errors import PlacementError, unknown_name

Strategy: TypeAlias = Callable[[CostProfile, int | None], Placement]
Position: TypeAlias = str | int | float

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2

MAX_CANDIDATES = 12
"""Number of exits that `auto` places at most if it is given no number."""

LEAST_SAVING = 0.03
"""Share of the cost that must remain behind an exit of `auto`."""

ENTRY_POINTS = "placement.strategies"
"""Entry-point group in which other packages register strategies."""

_strategies: dict[str, Strategy] = {}


def register_strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Register a strategy, a function of (profile, num_exits) to a placement, as a decorator.

    Raises:
        ValueError: the name is taken.
    """

    def register(strategy: Strategy) -> Strategy:
        if name in _strategies:
            raise ValueError(f"strategy '{name}' is already registered.")
        _strategies[name] = strategy
        return strategy

    return register


def list_strategies(pattern: str = "*") -> list[str]:
    """Return the names of the strategies that match an fnmatch pattern, sorted."""
    return fnmatch.filter(sorted(_with_entry_points()), pattern)


def get_strategy(name: str) -> Strategy:
    """Return the strategy called `name`.

    Raises:
        UnknownNameError: no such strategy; the nearest name is in the message.
    """
    strategies = _with_entry_points()
    if name not in strategies:
        raise unknown_name("strategy", name, strategies)
    return strategies[name]


def _with_entry_points() -> dict[str, Strategy]:
    """Return all strategies, including those of other packages."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.name not in _strategies:
            _strategies[point.name] = point.load()
    return _strategies


def place(
    profile: CostProfile,
    strategy: str | Strategy | Placement | Sequence[Position] = "auto",
    num_exits: int | None = None,
    *,
    cost: str | None = None,
) -> Placement:
    """Choose the boundaries that get an exit.

    Args:
        profile: cost of the backbone up to each candidate boundary.
        strategy: a registered name, a function of (profile, num_exits), an existing placement, or
            a list of positions (see `fixed`).
        num_exits: number of exits; None for the strategy's choice (see `default_num_exits`).
        cost: the cost that shares are relative to, "flops" or "seconds", if the profile has them;
            None for the profile's own.

    Raises:
        UnknownNameError: no strategy, candidate or cost of that name.
        PlacementError: more exits than boundaries, thresholds beyond the last boundary, or seconds
            that were not measured.
    """
    if cost is not None:
        profile = replace(profile, cost=cost)
    if not profile.candidates:
        raise PlacementError(
            f"{profile.model} has no block boundary where an exit could be placed."
        )
    if num_exits is not None:
        _check_num_exits(profile, num_exits)
    if isinstance(strategy, Placement):
        return fixed(profile, strategy.names, num_exits)
    if isinstance(strategy, str):
        return get_strategy(strategy)(profile, num_exits)
    if callable(strategy):
        return strategy(profile, num_exits)
    return fixed(profile, strategy, num_exits)


def default_num_exits(profile: CostProfile) -> int:
    """Return the default number of exits: √(candidates), rounded, at least one.

    This gives the 3 and 5 exits published for ResNet-20 and ResNet-56 (9 and 27 blocks), 3 on
    ResNet-18 and ViT-B (8 and 12), 4 on ResNet-50 (16). The number grows slower than that of the
    blocks, because each exit adds the cost of its branch to every sample that passes it.
    """
    return max(1, round(math.sqrt(len(profile.candidates))))


def fixed(
    profile: CostProfile, positions: Sequence[Position], num_exits: int | None = None
) -> Placement:
    """Place exits at given positions.

    Args:
        profile: cost of the backbone up to each candidate boundary.
        positions: each a candidate's name, its index (from 0, negative from the end), or a float
            in (0, 1) for the first candidate with at least that share of the cost.
        num_exits: number of exits, None for that of the positions.

    Raises:
        UnknownNameError: no candidate of that name.
        PlacementError: index or share out of range, a repeated boundary, or a number of positions
            that differs from `num_exits`.
    """
    if isinstance(positions, str) or not isinstance(positions, Sequence):
        raise PlacementError(f"Expected a list of positions, got {positions!r}.")
    indices = sorted(_index(profile, position) for position in positions)
    if not indices:
        raise PlacementError("A fixed placement needs at least one position, got none.")
    if len(set(indices)) != len(indices):
        raise PlacementError(f"Positions {list(positions)} name a boundary more than once.")
    if num_exits is not None and num_exits != len(indices):
        raise PlacementError(
            f"num_exits={num_exits} differs from the number of positions, {len(indices)}."
        )
    return _placement("fixed", profile, indices)


@register_strategy("fixed")
def _fixed_needs_positions(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Exits at given positions: block names, indices or FLOP shares."""
    raise PlacementError(
        "Strategy 'fixed' needs positions: pass a list of candidate names, indices or FLOP shares, "
        f"for example ['{profile.names[0]}', 0.5]. Candidates: {', '.join(profile.names)}."
    )


@register_strategy("auto")
def auto(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Exits at up to 12 boundaries at equal FLOP distances; calibration keeps those that pay.

    Boundaries behind which less than 3 % of the cost remain are left out, since an exit there saves
    less than that. A number of exits is placed exactly, at the boundaries closest to equal
    distances.
    """
    shares = profile.shares
    usable = [index for index, share in enumerate(shares) if share <= 1 - LEAST_SAVING]
    if num_exits is not None:
        _check_num_exits(profile, num_exits)
    if len(usable) < (num_exits or 1):
        usable = list(range(num_exits or 1))
    count = min(len(usable), MAX_CANDIDATES) if num_exits is None else num_exits
    chosen: list[int] = []
    for position in range(count):
        first = 0 if not chosen else usable.index(chosen[-1]) + 1
        free = usable[first : len(usable) - (count - position - 1)]
        distance = (position + 1) / (count + 1)
        chosen.append(min(free, key=lambda index: abs(shares[index] - distance)))
    return _placement("auto", profile, chosen)


@register_strategy("linear")
def linear(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Exits at equal FLOP distances: tᵢ = (i+1)/(N+1)."""
    return _by_share("linear", profile, num_exits, lambda i, n: (i + 1) / (n + 1))


@register_strategy("pareto")
def pareto(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Each exit after 20 % of the remaining FLOPs: tᵢ = 1 − 0.8^(i+1) (EENets).

    Demir & Akbas 2024.
    """
    return _by_share("pareto", profile, num_exits, lambda i, n: 1 - 0.8 ** (i + 1))


@register_strategy("fine")
def fine(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Each exit after 5 % of the remaining FLOPs: tᵢ = 1 − 0.95^(i+1) (EENets; PTEEnet).

    In a deep network all exits are in the first blocks, as published.
    """
    return _by_share("fine", profile, num_exits, lambda i, n: 1 - 0.95 ** (i + 1))


@register_strategy("golden")
def golden(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """Exits at FLOP shares in the golden ratio: tᵢ = φ^(i−N) (EENets, Demir & Akbas 2024)."""
    return _by_share("golden", profile, num_exits, lambda i, n: GOLDEN_RATIO ** (i - n))


@register_strategy("every")
def every(profile: CostProfile, num_exits: int | None = None) -> Placement:
    """An exit at each candidate boundary."""
    count = len(profile.candidates)
    if num_exits is not None and num_exits != count:
        raise PlacementError(
            f"Strategy 'every' places {count} exits on {profile.model}, "
            f"but num_exits is {num_exits}."
        )
    return _placement("every", profile, range(count))


def _by_share(
    strategy: str,
    profile: CostProfile,
    num_exits: int | None,
    threshold: Callable[[int, int], float],
) -> Placement:
    if num_exits is not None:
        _check_num_exits(profile, num_exits)
        return _scan(strategy, profile, [threshold(i, num_exits) for i in range(num_exits)])
    for count in range(default_num_exits(profile), 1, -1):
        try:
            return _scan(strategy, profile, [threshold(i, count) for i in range(count)])
        except PlacementError:
            continue
    return _scan(strategy, profile, [threshold(0, 1)])


def _scan(strategy: str, profile: CostProfile, thresholds: list[float]) -> Placement:
    """Place exit i at the first free boundary with share ≥ tᵢ."""
    shares = profile.shares
    chosen: list[int] = []
    for i, threshold in enumerate(thresholds):
        start = chosen[-1] + 1 if chosen else 0
        index = next((j for j in range(start, len(shares)) if shares[j] >= threshold), None)
        if index is None:
            raise PlacementError(
                f"Strategy '{strategy}' cannot place {len(thresholds)} exits on {profile.model}: "
                f"exit {i} needs a free boundary at {threshold:.3f} of the {profile.cost_name} "
                f"or later, but {len(shares) - start} of {len(shares)} boundaries remain and the "
                f"last is at {shares[-1]:.3f}. The first {i} exits fit."
            )
        chosen.append(index)
    return _placement(strategy, profile, chosen)


def _placement(strategy: str, profile: CostProfile, indices: Sequence[int]) -> Placement:
    return Placement(strategy, tuple(indices), tuple(profile.names[i] for i in indices))


def _check_num_exits(profile: CostProfile, num_exits: int) -> None:
    if isinstance(num_exits, bool) or not isinstance(num_exits, int) or num_exits < 1:
        raise PlacementError(f"num_exits must be a whole number from 1, got {num_exits!r}.")
    if num_exits > len(profile.candidates):
        raise PlacementError(
            f"num_exits is {num_exits}, but {profile.model} has only "
            f"{len(profile.candidates)} block boundaries: {', '.join(profile.names)}."
        )


def _index(profile: CostProfile, position: Position) -> int:
    count = len(profile.candidates)
    if isinstance(position, str):
        if position not in profile.names:
            raise unknown_name("block boundary", position, profile.names)
        return profile.names.index(position)
    if isinstance(position, bool) or not isinstance(position, (int, float)):
        raise PlacementError(f"A position is a name, an index or a FLOP share, got {position!r}.")
    if isinstance(position, int):
        if not -count <= position < count:
            raise PlacementError(
                f"Boundary index {position} is out of range: {profile.model} has {count}."
            )
        return position % count
    if not 0 < position < 1:
        raise PlacementError(f"A FLOP share lies between 0 and 1, got {position}.")
    for j, share in enumerate(profile.shares):
        if share >= position:
            return j
    raise PlacementError(
        f"No boundary of {profile.model} lies at {position} of the FLOPs or later; "
        f"the last is at {profile.shares[-1]:.3f}."
    )
