"""Placement strategies against the published examples and by property."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import placement
from placement import Candidate, CostProfile, PlacementError, UnknownNameError

PUBLISHED = [
    # ResNet-20's shares, counted with normalisation and activations.
    (20, 3, "with norms", {"fine": [1, 2, 3], "pareto": [2, 3, 5], "golden": [2, 4, 6]}),
    (20, 3, "with norms", {"linear": [3, 5, 7]}),
    # Multiply-adds of convolutions and the classifier only.
    (20, 3, "convs", {"pareto": [2, 4, 5]}),
    (56, 5, "convs", {"fine": [2, 3, 4, 5, 6], "pareto": [6, 10, 14, 16, 19]}),
    (56, 5, "convs", {"golden": [3, 4, 7, 11, 17], "linear": [5, 9, 14, 18, 23]}),
    (110, 10, "convs", {"fine": [3, 6, 8, 10, 13, 15, 17, 18, 20, 22]}),
    (110, 10, "convs", {"pareto": [11, 20, 27, 32, 37, 40, 43, 46, 47, 49]}),
    (110, 10, "convs", {"golden": [1, 2, 3, 4, 5, 6, 8, 13, 21, 34]}),
    (110, 10, "convs", {"linear": [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]}),
]


def cifar_resnet(depth: int, counter: str) -> CostProfile:
    """He et al. 2015, section 4.2: 6n+2 layers on 32x32 images, parameter-free shortcuts."""
    if counter == "with norms":
        shares = [0.128, 0.245, 0.361, 0.451, 0.566, 0.681, 0.771, 0.886, 0.999]
        return profile_of([round(1000 * share) for share in shares], 1000)
    flops = 3 * 16 * 9 * 32 * 32
    ends = []
    width, size = 16, 32
    for layer in range(3):
        for block in range((depth - 2) // 6):
            inner = width
            if layer and not block:
                width, size = 2 * width, size // 2
            flops += 9 * (inner * width + width * width) * size * size
            ends.append(flops)
    return profile_of(ends, flops + 64 * 10)


def profile_of(ends: list[int], total: int) -> CostProfile:
    candidates = tuple(Candidate(f"block{i + 1}", end, end, end) for i, end in enumerate(ends))
    return CostProfile("network", candidates, total, total, total)


@pytest.mark.parametrize(("depth", "exits", "counter", "expected"), PUBLISHED)
def test_published_placements(depth, exits, counter, expected):
    profile = cifar_resnet(depth, counter)
    for strategy, blocks in expected.items():
        placed = placement.place(profile, strategy, exits)
        assert [index + 1 for index in placed.indices] == blocks


def test_multiply_adds_put_block_3_just_under_the_pareto_threshold():
    assert cifar_resnet(20, "convs").shares[2] == pytest.approx(0.35999, abs=5e-6)


increasing = st.lists(st.integers(1, 10**6), min_size=1, max_size=40, unique=True).map(sorted)


@given(increasing, st.sampled_from(["fine", "pareto", "golden", "linear"]), st.integers(1, 12))
def test_each_exit_is_the_first_free_boundary_past_its_threshold(ends, strategy, exits):
    profile = profile_of(ends, ends[-1] + 1)
    thresholds = {
        "fine": [1 - 0.95 ** (i + 1) for i in range(exits)],
        "pareto": [1 - 0.8 ** (i + 1) for i in range(exits)],
        "golden": [1.6180339887498949 ** (i - exits) for i in range(exits)],
        "linear": [(i + 1) / (exits + 1) for i in range(exits)],
    }[strategy]
    expected, free = [], list(range(len(ends)))
    for threshold in thresholds:
        fits = [j for j in free if profile.shares[j] >= threshold]
        if not fits:
            with pytest.raises(PlacementError, match="exits"):
                placement.place(profile, strategy, exits)
            return
        expected.append(fits[0])
        free = [j for j in free if j > fits[0]]
    assert list(placement.place(profile, strategy, exits).indices) == expected


@given(increasing)
def test_the_default_number_of_exits_is_reduced_until_they_fit(ends):
    profile = profile_of(ends, ends[-1] + 1)
    for strategy in ("fine", "linear"):
        try:
            placed = placement.place(profile, strategy)
        except PlacementError:
            # Not even one exit fits: every boundary lies before the first threshold.
            assert profile.shares[-1] < {"fine": 0.05, "linear": 0.5}[strategy]
            continue
        assert 1 <= len(placed) <= placement.default_num_exits(profile)


@pytest.mark.parametrize(("blocks", "exits"), [(9, 3), (27, 5), (8, 3), (16, 4), (12, 3), (1, 1)])
def test_default_number_of_exits(blocks, exits):
    profile = profile_of(list(range(1, blocks + 1)), blocks + 1)
    assert placement.default_num_exits(profile) == exits


def test_every_places_an_exit_at_each_boundary():
    profile = profile_of([1, 2, 3], 4)
    assert placement.place(profile, "every").indices == (0, 1, 2)
    with pytest.raises(PlacementError, match="places 3 exits"):
        placement.place(profile, "every", 2)


def test_fixed_accepts_names_indices_and_shares():
    profile = profile_of([10, 20, 30, 40], 100)
    assert placement.place(profile, ["block4", 0, 0.15]).indices == (0, 1, 3)
    assert placement.place(profile, [-1]).names == ("block4",)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (["blok2"], "Did you mean 'block2'"),
        ([4], "out of range"),
        ([0.9], "last is at 0.400"),
        ([1.5], "between 0 and 1"),
        (["block1", 0], "more than once"),
        ([], "at least one"),
        ([True], "name, an index or a FLOP share"),
    ],
)
def test_fixed_rejects_invalid_positions(positions, message):
    profile = profile_of([10, 20, 30, 40], 100)
    with pytest.raises(PlacementError, match=message):
        placement.place(profile, positions)


def test_unknown_strategy_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown strategy 'fien'\. Did you mean 'fine'"):
        placement.place(profile_of([1], 2), "fien")


@pytest.mark.parametrize(
    ("exits", "message"), [(5, "only 4 block boundaries"), (0, "whole number"), (True, "whole")]
)
def test_impossible_numbers_of_exits_are_rejected(exits, message):
    with pytest.raises(PlacementError, match=message):
        placement.place(profile_of([10, 20, 30, 40], 100), "fine", exits)


def test_a_network_without_boundaries_is_rejected():
    with pytest.raises(PlacementError, match="no block boundary"):
        placement.place(CostProfile("network", (), 10, 10, 10), "fine")


@given(increasing)
def test_profile_and_placement_round_trip_through_json(ends):
    profile = profile_of(ends, ends[-1] + 1)
    assert CostProfile.from_json(profile.to_json()) == profile
    assert json.loads(profile.to_json())["unit"] == placement.UNIT
    placed = placement.place(profile, "every")
    assert placement.Placement.from_json(placed.to_json()) == placed
    assert placement.place(profile, placed).indices == placed.indices


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"schema": 99, "unit": ""}'])
def test_invalid_json_is_rejected(text):
    with pytest.raises(PlacementError):
        CostProfile.from_json(text)
    with pytest.raises(PlacementError):
        placement.Placement.from_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"names": "ab"},
        {"indices": ["0", "1"]},
        {"strategy": 3},
        {"indices": [0]},
        {"names": [1, 2]},
    ],
)
def test_values_of_other_types_are_no_placement(changes):
    values = {"schema": 1, "strategy": "fixed", "indices": [0, 1], "names": ["a", "b"]}
    assert len(placement.Placement.from_json(json.dumps(values))) == 2
    with pytest.raises(PlacementError, match="Not a placement"):
        placement.Placement.from_json(json.dumps({**values, **changes}))


def test_profile_rejects_repeated_names_and_decreasing_costs():
    with pytest.raises(PlacementError, match="more than once"):
        CostProfile("n", (Candidate("a", 1, 1, 1), Candidate("a", 2, 2, 2)), 3, 3, 3)
    with pytest.raises(PlacementError, match="must not decrease"):
        CostProfile("n", (Candidate("a", 5, 1, 1),), 3, 3, 3)


def test_edges_of_the_chain_sum_to_the_total():
    profile = profile_of([10, 25, 30], 100)
    chain = profile.to_networkx()
    differences = [data["flops"] for _, _, data in chain.edges(data=True)]
    assert differences == [10, 15, 5, 70]
    assert sum(differences) == profile.flops


def test_a_strategy_name_can_be_registered_once():
    name = "test-last"

    @placement.register_strategy(name)
    def last(profile, num_exits=None):
        return placement.fixed(profile, [-1])

    assert name in placement.list_strategies("test-*")
    assert placement.place(profile_of([1, 2], 4), name).indices == (1,)
    with pytest.raises(ValueError, match="already registered"):
        placement.register_strategy(name)(last)


def test_entry_points_add_strategies_but_do_not_replace_existing_ones(tmp_path, monkeypatch):
    """A distribution on the import path, as pip installs it."""
    (tmp_path / "their_strategies.py").write_text(
        "import placement\n"
        "def first(profile, num_exits=None):\n"
        "    return placement.fixed(profile, [0])\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[placement.strategies]\n"
        "test-first = their_strategies:first\nfine = their_strategies:first\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "test-first" in placement.list_strategies()
    assert placement.get_strategy("fine") is placement.fine
    assert placement.place(profile_of([1, 2], 4), "test-first").indices == (0,)
