"""Hierarchical training: tiers that exchange no gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import data, loader
from method_helpers import attached_for, changed_keys, state
from networks import close, images, tiny

import leenet_fx
from leenet_fx import InputError
from leenet_fx.features.feature_batch import FeatureBatch
from leenet_fx.training.phase_loss import PhaseLoss

CUTS = {"first": (0,), "middle": (1,), "two": (0, 2), "last": (3,), "all": (0, 1, 2, 3)}


def gradients_of_tiers(ee, x, labels, cuts):
    """Gradients of the sum of losses of each tier, in its part of the network only."""
    outputs = ee.all_exits(x)
    losses = [F.cross_entropy(logits, labels) for logits in outputs.logits]
    named = {k: p for k, p in ee.named_parameters() if p.requires_grad}
    ends = [*cuts, len(losses) - 1]
    starts = [0, *(cut + 1 for cut in cuts)]
    found = {}
    for start, end in zip(starts, ends, strict=True):
        loss = sum(losses[start : end + 1])
        gradients = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True, retain_graph=True
        )
        for (name, _), gradient in zip(named.items(), gradients, strict=True):
            if gradient is not None and start <= tier_of(name, end) <= end:
                found[name] = gradient
    return found


def tier_of(name, end):
    """The stage of a parameter; the stem is in stage 0, block i in stage i."""
    parts = name.split(".")
    if parts[0] in ("blocks", "exits"):
        return int(parts[1])
    return 0 if parts[0] == "stem" else 4


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("head", ["linear", "cascade"])
@pytest.mark.parametrize("branch", ["pool", "side"])
def test_each_tier_has_the_gradients_of_its_own_losses_only(cuts, head, branch):
    options = {"head": head} if branch == "pool" else {"width": 6}
    ee = leenet_fx.attach(
        tiny(),
        "every",
        example_inputs=images(1, 3, 16, 16),
        branch=branch,
        branch_options=options,
    ).train()
    x, labels = data(16)
    expected = gradients_of_tiers(ee, x, labels, cuts)
    (phase,) = leenet_fx.get_method("hierarchical", cuts=cuts).phases
    loss = PhaseLoss(ee, phase, None, torch.ones(5), 0.0)
    loss(FeatureBatch((), None, None, labels, 16, x), None, phase.updates[0], None, 0.0).backward()
    found = {k: p.grad for k, p in ee.named_parameters() if p.grad is not None}
    trained = {k for k, g in expected.items() if g.abs().max() > 0}
    assert trained <= set(found)
    assert {k.split(".")[0] for k in trained} == {"stem", "blocks", "exits", "fc"}
    for name in found:
        if name in expected:
            assert close(found[name], expected[name], 1e-4), name
        else:
            assert not found[name].any(), name


def test_a_tier_trains_as_it_would_without_the_tiers_behind_it():
    """The first tier, as BranchyNet trains it with no weight on later classifiers."""
    alone, together = attached_for("branchynet"), attached_for("hierarchical")
    alone.load_state_dict(together.state_dict())
    before = state(together)
    only_first = leenet_fx.get_method("branchynet", exit_weights=(1, 0, 0, 0, 0))
    leenet_fx.fit(alone, loader(48), method=only_first, epochs=2)
    leenet_fx.fit(together, loader(48), method="hierarchical", epochs=2)
    changed = changed_keys(before, state(together))
    for name, value in together.state_dict().items():
        if name.startswith(("stem.", "blocks.0.", "exits.0.")):
            assert close(value.float(), alone.state_dict()[name].float(), 1e-5), name
    for name in ("stem.weight", "blocks.0.conv1.weight", "blocks.3.conv1.weight", "fc.weight"):
        assert name in changed


@pytest.mark.parametrize("cuts", [(), (1, 0), (0, 0), (-1,), (True,), (0.0,), 0, "0", None])
def test_cuts_are_ascending_indices(cuts):
    with pytest.raises(InputError, match="cuts must be ascending indices of exits"):
        leenet_fx.get_method("hierarchical", cuts=cuts)


def test_a_cut_behind_an_exit_that_does_not_exist_is_an_error():
    ee = attached_for("hierarchical")
    before = copy.deepcopy(ee.state_dict())
    method = leenet_fx.get_method("hierarchical", cuts=[1, 4])
    with pytest.raises(InputError, match=r"behind exits \[1, 4\], and it has 4, from 0 to 3"):
        leenet_fx.fit(ee, loader(48), method=method, epochs=1)
    assert all(torch.equal(value, ee.state_dict()[key]) for key, value in before.items())
