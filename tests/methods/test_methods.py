"""Every published method: what moves, what it minimises, who leaves, what is refused."""

import copy
import inspect
import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    array,
    assert_equal,
    backbone,
    data,
    entropy,
    first,
    loader,
    log_softmax,
    shuffled,
)
from networks import TinyNet, images, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import (
    Entropy,
    GateThreshold,
    InputError,
    MaxProbability,
    NeverExit,
    Patience,
    TrainingError,
    UnknownNameError,
    cache_features,
    set_budget,
)
from leenet_fx.cli.fit import fit as fit_by_command
from leenet_fx.methods import DEFAULT, list_method_options
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import get_objective, soft_probabilities
from leenet_fx.policies import AlphaConditionedGate
from leenet_fx.training.checkpoint import load_checkpoint

# Steps, and the policy that is left.
PRESETS = {
    "boostnet": (["together"], MaxProbability(0.9)),
    "branchynet": (["together"], Entropy(0.5)),
    "diffbranch": (["together"], GateThreshold(0.0)),
    "distilled": (["exits"], MaxProbability(0.9)),
    "e2cm": (["means"], MaxProbability(0.5)),
    "eenets": (["exits", "gates"], GateThreshold(0.0)),
    "jei-dnn": (["exits", "turns"], GateThreshold(0.0)),
    "leenet": (["exits", "gates"], GateThreshold(0.0)),
    "leenet-dial": (["exits", "gates"], AlphaConditionedGate(0.5)),
    "msdnet": (["together"], MaxProbability(0.9)),
    "pabee": (["together"], Patience(2)),
    "pteenet": (["exits"], GateThreshold(0.0)),
    "shallow-deep": (["exits"], MaxProbability(0.9)),
    "ztw": (["exits", "ensembles"], MaxProbability(0.9)),
}
JOINT = {"boostnet", "branchynet", "diffbranch", "eenets", "msdnet", "pabee"}
FROZEN = sorted(set(PRESETS) - JOINT)
GATED = {"diffbranch", "eenets", "jei-dnn", "leenet", "leenet-dial", "pteenet"}


def fresh(method, model, **options):
    return leenet_fx.attach(
        model, "every", example_inputs=images(1, 3, 16, 16), method=method, **options
    )


@cache
def on_tiny(method):
    return fresh(method, tiny())


def attached(method):
    return copy.deepcopy(on_tiny(method))


def fitted(method, train=None, ee=None, epochs=2, **options):
    ee = attached(method) if ee is None else ee
    own = {name: options.pop(name) for name in list(options) if name in list_method_options(method)}
    chosen = leenet_fx.get_method(method, **own)
    leenet_fx.fit(ee, loader() if train is None else train, method=chosen, epochs=epochs, **options)
    return ee


def state(ee):
    return {key: value.clone() for key, value in ee.state_dict().items()}


def moved(before, after):
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def same(first, second):
    return not moved(first.state_dict(), second.state_dict())


@torch.no_grad()
def everything(ee, x):
    return ee.all_exits(x)


def gates_of(ee):
    return [part.gate.linear.bias.detach().clone() for part in ee.exits]


def heads_of(ee):
    return [part.head.linear.weight.detach().clone() for part in ee.exits]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_these_are_all_methods():
    assert {name for name in leenet_fx.list_methods() if not name.startswith("test-")} == set(
        PRESETS
    )


@pytest.mark.parametrize("method", PRESETS)
def test_attach_and_fit(method):
    steps, policy = PRESETS[method]
    model = tiny()
    original = copy.deepcopy(model.state_dict())
    ee = fresh(method, model)
    before, frozen = state(ee), backbone(ee)
    result = leenet_fx.fit(ee, loader(), method=method, epochs=2)
    assert result.method == method
    ran = [1] if method == "e2cm" else [1, 2]
    assert [(e.phase, e.epoch) for e in result.history] == [(s, n) for s in steps for n in ran]
    assert not any(module.training for module in ee.modules())
    assert all(p.grad is None and p.requires_grad for p in ee.parameters())
    assert ee.policy == policy
    outputs = everything(ee, data(seed=5)[0])
    assert bool(torch.stack(outputs.logits).isfinite().all())
    assert bool(outputs.gate_logits.isfinite().all())
    assert not moved(original, model.state_dict())
    changed = moved(before, state(ee))
    if method in JOINT:
        assert {"stem.weight", "fc.bias", "blocks.3.bn.running_mean"} <= changed
        assert all(key in changed for key in frozen if "num_batches" not in key)
    else:
        assert not moved(frozen, backbone(ee))
    # Gates move where the method trains them; heads always, but for class means.
    assert any(".gate.linear." in key for key in changed) == (method in GATED)
    assert any(".head.linear." in key for key in changed) == (method != "e2cm")


@pytest.mark.parametrize("method", FROZEN)
def test_kept_features_do_as_well_as_images(method):
    live, kept = attached(method), attached(method)
    first = leenet_fx.fit(live, shuffled(), shuffled(40, 5), method=method, epochs=2, seed=3)
    second = leenet_fx.fit(
        kept, shuffled(), shuffled(40, 5), method=method, epochs=2, seed=3, cache=True
    )
    assert_equal(live, kept, atol=2e-5)
    for a, b in zip(first.history, second.history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)


@pytest.mark.parametrize("method", sorted(JOINT))
def test_no_kept_features_where_the_backbone_trains(method):
    ee = attached(method)
    before = state(ee)
    with pytest.raises(InputError, match=f"'{method}' trains the backbone"):
        leenet_fx.fit(ee, loader(), method=method, cache=True)
    assert not moved(before, state(ee))


def test_neither_a_cache_nor_the_callers_weights_train():
    ee = attached("branchynet")
    with cache_features(ee, loader()) as kept:
        with pytest.raises(InputError, match="'train' cannot be a feature cache"):
            leenet_fx.fit(ee, kept, method="branchynet")
        leenet_fx.fit(
            ee, kept, method=leenet_fx.get_method("branchynet", recipe="disjoint"), epochs=1
        )
    with pytest.raises(InputError, match="attach with copy=True"):
        leenet_fx.fit(fresh("branchynet", tiny(), copy=False), loader(), method="branchynet")


ALONE, FINAL, TOGETHER = "exits", "final", "together"
RECIPES = {
    "boostnet": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
    "branchynet": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
    "diffbranch": ([ALONE, TOGETHER], [TOGETHER], [ALONE, TOGETHER]),
    "distilled": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
    "eenets": ([ALONE, "gates"], [ALONE, "gates"], [ALONE, "exits together", "gates together"]),
    "msdnet": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
    "pabee": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
    "shallow-deep": ([ALONE], [TOGETHER], [ALONE, TOGETHER]),
}


@pytest.mark.parametrize("method", RECIPES)
def test_each_training_regime(method):
    for recipe, steps in zip(("disjoint", "joint", "mixed"), RECIPES[method], strict=True):
        ee = attached(method)
        frozen = backbone(ee)
        result = leenet_fx.fit(
            ee, loader(48), method=leenet_fx.get_method(method, recipe=recipe), epochs=1
        )
        assert [epoch.phase for epoch in result.history] == steps
        assert bool(moved(frozen, backbone(ee))) == (recipe != "disjoint")


def test_the_final_classifier_has_its_step():
    for method, steps in (
        ("ztw", ["exits", "final", "ensembles"]),
        ("jei-dnn", ["exits", "final", "turns"]),
    ):
        ee = attached(method)
        frozen = backbone(ee)
        result = leenet_fx.fit(ee, loader(48), method=method, epochs=1, train_final=True)
        assert [epoch.phase for epoch in result.history] == steps
        assert moved(frozen, backbone(ee)) == {"fc.weight", "fc.bias"}


class Encoder(TinyNet):
    def forward(self, x):
        return self.blocks(self.stem(x))


@pytest.mark.parametrize("recipe", ["joint", "mixed"])
def test_an_encoders_class_head_trains_with_its_backbone(recipe):
    ee = fresh("branchynet", Encoder().eval(), num_classes=5)
    before = state(ee)
    leenet_fx.fit(
        ee, loader(48), method=leenet_fx.get_method("branchynet", recipe=recipe), epochs=1
    )
    changed = moved(before, state(ee))
    assert {"stem.weight", "exits.final.linear.weight", "exits.final.linear.bias"} <= changed


@pytest.mark.parametrize("recipe", ["joint", "mixed"])
def test_an_encoders_class_head_stays_where_it_is_not_asked_for(recipe):
    ee = fresh("branchynet", Encoder().eval(), num_classes=5)
    before = state(ee)
    leenet_fx.fit(
        ee,
        loader(48),
        method=leenet_fx.get_method("branchynet", recipe=recipe),
        epochs=1,
        train_final=False,
    )
    assert not {"exits.final.linear.weight"} & moved(before, state(ee))


# --- interrupted, or in several processes ------------------------------------------------------


class Stops(DataLoader):
    """Gives so many passes, then breaks as a machine does."""

    left = 0

    def __iter__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__iter__()


def noisy(passes):
    """In an order of its own, so that it matters which batch is next."""
    generator = torch.Generator().manual_seed(8)
    made = Stops(TensorDataset(*data(80)), 16, shuffle=True, generator=generator)
    made.left = passes
    return made


# A step reads the data once for the scale of inputs, once for that of gates, once each epoch.
INTERRUPTED = {
    "jei-dnn": ({"period": 3}, 1 + 3 + 2 + 2, ("turns", 2)),
    "eenets": ({}, 1 + 3 + 2 + 1, ("gates", 1)),
    "leenet-dial": ({}, 1 + 3 + 1 + 2, ("gates", 2)),
}


@pytest.mark.parametrize("method", INTERRUPTED)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(method, tmp_path):
    """Dropout draws from the global generator; a backbone's BatchNorm counts what it has seen."""
    options, passes, (step, epoch) = INTERRUPTED[method]
    options = {"method": method, "epochs": 3, "seed": 2, **options}
    ends = []
    for left in (99, passes):
        ee = fresh(method, tiny(dropout=0.5))
        torch.manual_seed(7)
        if left == passes:
            with pytest.raises(KeyboardInterrupt):
                leenet_fx.fit(ee, noisy(left), out=tmp_path, **options)
            reached = load_checkpoint(tmp_path)["history"][-1]
            assert (reached["step"], reached["epoch"]) == (step, epoch)
            ee = fresh(method, tiny(dropout=0.5))
            torch.manual_seed(99)
            leenet_fx.fit(ee, noisy(99), out=tmp_path, resume=True, **options)
        else:
            leenet_fx.fit(ee, noisy(left), **options)
        ends.append(ee)
    assert same(*ends)
    assert ends[0].policy == ends[1].policy
    loaded = leenet_fx.load(tmp_path, tiny(dropout=0.5))
    assert torch.equal(loaded(images(8, 3, 16, 16)), ends[0](images(8, 3, 16, 16)))


def uneven():
    """The last batch has one row, so one of two processes has none."""
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(*data(47)), 23, shuffle=True, generator=generator)


def test_two_processes_find_the_ensembles_of_one():
    """A parameter that nobody uses has no gradient where rows are, nor where none are."""
    ends = []
    for options in ({}, {"accelerator": "cpu", "devices": 2}):
        ee = attached("ztw")
        ee.exits[0].head.unused = nn.Parameter(torch.ones(3))
        before = state(ee)
        leenet_fx.fit(ee, uneven(), method="ztw", epochs=2, **options)
        ends.append(state(ee))
        changed = moved(before, ends[-1])
        assert {"exits.3.head.weights", "exits.3.head.ensembles"} <= changed
        assert "exits.0.head.unused" not in changed
    for name, value in ends[0].items():
        assert torch.allclose(value.double(), ends[1][name].double(), atol=2e-5), name


# --- what each method minimises ----------------------------------------------------------------


def softmax(z):
    return np.exp(log_softmax(z))


def cross_entropies(logits, labels):
    rows = np.arange(len(labels))
    return [-log_softmax(at)[rows, labels.numpy()].mean() for at in logits]


def taught(logits, labels, mix=0.5, temperature=2.0):
    """Each exit by labels and by the final classifier, whose own lesson is the labels."""
    *exits, final = logits
    ce = cross_entropies(logits, labels)
    teacher = log_softmax(final / temperature)
    total = ce[-1]
    for at, loss in zip(exits, ce, strict=False):
        gap = teacher - log_softmax(at / temperature)
        divergence = (np.exp(teacher) * gap).sum(1).mean()
        total += (1 - mix) * loss + mix * temperature**2 * divergence
    return total


# Of mean cross-entropies at 5 outlets and their relative costs.
LOSSES = {
    "branchynet": lambda ce, c: sum(ce[:4]) + 0.3 * ce[4],
    "msdnet": lambda ce, c: sum(ce),
    "pabee": lambda ce, c: (ce[0] + 2 * ce[1] + 3 * ce[2] + 4 * ce[3] + 5 * ce[4]) / 15,
    "boostnet": lambda ce, c: ce[0] / 5 + ce[1] / 4 + ce[2] / 3 + ce[3] / 2 + ce[4],
    # In the first epoch; the weights of exits rise to their costs.
    "shallow-deep": lambda ce, c: 0.01 * sum(ce[:4]) + ce[4],
}


@pytest.mark.parametrize("method", [*LOSSES, "distilled"])
def test_the_loss_of_joint_training(method):
    """Of the first batch, before a weight has moved, from the answers in training mode."""
    x, labels = data(40)
    options = {"method": method, "recipe": "joint", "epochs": 1}
    ee = attached(method)
    leenet_fx.fit(ee, [(x, labels)], **options)
    logits = [array(at) for at in copy.deepcopy(ee).train()(x).logits]
    result = leenet_fx.fit(ee, [(x, labels)], **options)
    if method == "distilled":
        expected = taught(logits, labels)
    else:
        expected = LOSSES[method](cross_entropies(logits, labels), ee.costs.relative())
    assert result.history[0].train_loss == pytest.approx(expected, rel=1e-4)


def gate_terms(ee, x):
    """Probabilities at every outlet, and chances that gates open."""
    outputs = everything(ee, x)
    return [softmax(array(at)) for at in outputs.logits], 1 / (
        1 + np.exp(-array(outputs.gate_logits))
    )


def mixtures(p, g, costs):
    """For each outlet Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁, and Cᵢ likewise."""
    mixed, spent = [p[-1]], [np.full(len(g), costs[-1])]
    for i in reversed(range(g.shape[1])):
        opens = g[:, i]
        mixed.insert(0, opens[:, None] * p[i] + (1 - opens[:, None]) * mixed[0])
        spent.insert(0, opens * costs[i] + (1 - opens) * spent[0])
    return mixed, spent


def naive_eenets(version, p, g, costs, labels, weight):
    rows = np.arange(len(labels))
    ce = [-np.log(at[rows, labels]) for at in p]
    mixed, spent = mixtures(p, g, costs)
    mixed = [-np.log(at[rows, labels]) for at in mixed]
    if version == 1:
        return (mixed[0] + weight * spent[0]).mean()
    if version == 2:
        return sum((at + weight * c).mean() for at, c in zip(mixed, spent, strict=True))
    priced = np.stack(ce, 1) + weight * np.asarray(costs)
    if version == 3:
        means = np.append(g.mean(0), 1.0)
        return (means / means.sum() * priced.mean(0)).sum()
    tag = priced.argmin(1)
    bce = 0.0
    for i in range(g.shape[1]):
        kinds = [-np.log(g[tag == i, i]), -np.log(1 - g[tag > i, i])]
        there = [kind.mean() for kind in kinds if len(kind)]
        bce += sum(there) / len(there) if there else 0.0
    return bce + priced[rows, tag].mean()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_eenets_versions_minimise_their_losses(version):
    """At the last of three epochs, so that gates have moved from where they start alike."""
    x, labels = data(40)
    ee = attached("eenets")
    seen = []

    class Watching:
        """Notes the answers as each reading starts: two for scales, then one an epoch."""

        def __iter__(self):
            seen.append(gate_terms(ee, x))
            return iter([(x, labels)])

    options = {"version": version, "recipe": "disjoint", "two_stage": False, "alpha": 0.7}
    result = leenet_fx.fit(ee, Watching(), method="eenets", epochs=3, **options)
    assert [epoch.phase for epoch in result.history] == ["gates"] * 3
    p, g = seen[-1]
    expected = naive_eenets(version, p, g, ee.costs.relative(), labels.numpy(), 0.7)
    assert result.history[-1].train_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("version", "steps", "policy"),
    [
        (0, ["exits"], MaxProbability(0.5)),
        (1, ["exits", "gates"], GateThreshold(0.0)),
        (2, ["exits", "gates"], GateThreshold(0.0)),
        # h ≥ 1/5, of 4 exits and the final classifier: a logit of ln(0.2 / 0.8).
        (3, ["exits", "gates"], GateThreshold(math.log(0.2 / 0.8))),
        (4, ["exits", "gates"], GateThreshold(0.0)),
    ],
)
def test_eenets_versions_differ_in_steps_and_policy(version, steps, policy):
    ee = attached("eenets")
    before = state(ee)
    result = leenet_fx.fit(
        ee, loader(48), method=leenet_fx.get_method("eenets", version=version), epochs=1
    )
    assert [epoch.phase for epoch in result.history] == steps
    assert type(ee.policy) is type(policy)
    assert ee.policy.thresholds == pytest.approx(policy.thresholds)
    assert any(".gate.linear" in key for key in moved(before, state(ee))) == (version > 0)


def test_one_stage_of_eenets():
    for version, steps in ((0, ["exits"]), (1, ["gates"])):
        ee = attached("eenets")
        result = leenet_fx.fit(
            ee,
            loader(48),
            method=leenet_fx.get_method("eenets", version=version, two_stage=False),
            epochs=1,
        )
        assert [epoch.phase for epoch in result.history] == steps


# --- what distinguishes each -------------------------------------------------------------------


def test_branchynet_weights_say_which_outlets_learn():
    learned = {}
    for weights in (None, (1, 0, 0, 0, 0), (0, 0, 0, 0, 1)):
        ee = attached("branchynet")
        before = state(ee)
        leenet_fx.fit(
            ee, loader(48), method=leenet_fx.get_method("branchynet", weights=weights), epochs=1
        )
        changed = moved(before, state(ee))
        learned[weights] = [f"exits.{i}.head.linear.weight" in changed for i in range(4)]
        learned[weights].append("fc.weight" in changed)
        # What stands behind the only outlet that counts has no gradient.
        assert ("blocks.3.conv1.weight" in changed) == (weights != (1, 0, 0, 0, 0))
    assert learned[None] == [True] * 5
    assert learned[1, 0, 0, 0, 0] == [True, False, False, False, False]
    assert learned[0, 0, 0, 0, 1] == [False, False, False, False, True]


def test_branchynet_leaves_by_entropy():
    x = data(seed=5)[0]
    before = fitted("branchynet").all_exits(x).logits[:-1]
    entropies = np.stack([entropy(softmax(array(at))) for at in before], 1)
    # In the widest gap of the middle half, so that samples leave at several exits.
    middle = np.sort(entropies.ravel())[entropies.size // 4 : -entropies.size // 4]
    widest = np.diff(middle).argmax()
    threshold = float(middle[widest : widest + 2].mean())
    assert np.abs(entropies - threshold).min() > 1e-5
    ee = fitted("branchynet", threshold=threshold)
    assert ee.policy == Entropy(threshold)
    left = [first([value <= threshold for value in row]) for row in entropies.tolist()]
    assert ee.predict(x).exit_index.tolist() == left
    assert len(set(left)) > 1


def test_diffbranch_answers_softly_too():
    ee = fitted("diffbranch")
    outputs = everything(ee, data(24, seed=5)[0])
    found = soft_probabilities(*outputs)
    for sample in range(24):
        mixed = softmax(array(outputs.logits[-1][sample : sample + 1]))[0]
        for i in reversed(range(4)):
            g = 1 / (1 + math.exp(-outputs.gate_logits[sample, i].item()))
            p = softmax(array(outputs.logits[i][sample : sample + 1]))[0]
            mixed = g * p + (1 - g) * mixed
        assert found[sample].tolist() == pytest.approx(mixed.tolist(), abs=1e-5)
        assert sum(mixed) == pytest.approx(1)


def test_pteenet_learns_from_images_alone():
    """The labels are the backbone's arg-max; those of the loader are not read."""
    x, labels = data(48)
    alone = fitted("pteenet", DataLoader(x, 16))
    assert same(alone, fitted("pteenet", DataLoader(TensorDataset(x, labels.flip(0)), 16)))
    assert same(alone, fitted("pteenet", DataLoader(TensorDataset(x, labels + 90), 16)))

    name = "test-pteenet-by-labels"

    @leenet_fx.register_method(name)
    def by_labels():
        loss = get_objective("pteenet")()
        step = single_update_phase("exits", ("classifiers", "gates"), loss, lr=0.03)
        return leenet_fx.Method((step,), GateThreshold(0.0), "a test", cost_weight=1.0)

    told = attached("pteenet")
    given = TensorDataset(x, tiny()(x).argmax(1))
    leenet_fx.fit(told, DataLoader(given, 16), method=name, epochs=2)
    assert same(alone, told)
    other = attached("pteenet")
    leenet_fx.fit(other, DataLoader(TensorDataset(x, labels), 16), method=name, epochs=2)
    assert not same(alone, other)


def test_jei_dnn_takes_turns(tmp_path):
    """Five batches an epoch and a turn: heads move in the first epoch, gates in the next."""
    ee = attached("jei-dnn")
    names = [name for name, _ in ee.exits.named_parameters()]
    heads, gates = [], []
    for turns in (1, 2, 3):
        # Two epochs of the exits; a pass before each step to scale inputs, one to scale evidence.
        with pytest.raises(KeyboardInterrupt):
            leenet_fx.fit(
                attached("jei-dnn"),
                noisy(5 + turns),
                method=leenet_fx.get_method("jei-dnn", period=5),
                epochs={"exits": 2, "turns": 5},
                out=tmp_path / str(turns),
            )
        kept = load_checkpoint(tmp_path / str(turns))["trainer"]
        assert kept["done"] == turns
        values = dict(zip(names, kept["state"], strict=False))
        heads.append({name: at for name, at in values.items() if ".head." in name})
        gates.append({name: at for name, at in values.items() if ".gate." in name})
    assert heads[0]
    assert gates[0]
    # Gates open for a quarter, a third … of who arrives: logits of 1/5, 1/4, 1/3, 1/2.
    start = [math.log(share / (1 - share)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2)]
    biases = [at.item() for name, at in gates[0].items() if name.endswith("bias")]
    assert biases == pytest.approx(start, abs=1e-6)
    assert same_tensors(heads[0], heads[1])
    assert not same_tensors(gates[0], gates[1])
    assert not same_tensors(heads[1], heads[2])
    assert same_tensors(gates[1], gates[2])


def same_tensors(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_turn_longer_than_training_is_the_only_one():
    ee = fitted("jei-dnn", epochs={"exits": 1, "turns": 2}, period=10_000)
    start = [math.log(share / (1 - share)) for share in (1 / 5, 1 / 4, 1 / 3, 1 / 2)]
    assert [bias.item() for bias in gates_of(ee)] == pytest.approx(start, abs=1e-6)
    assert not equal(heads_of(ee), heads_of(fitted("jei-dnn", epochs={"exits": 1, "turns": 0})))


def test_e2cm_reads_the_data_once_more_and_trains_nothing():
    class Counting:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([data(40)])

    train = Counting()
    ee = attached("e2cm")
    before = {name: p.detach().clone() for name, p in ee.named_parameters()}
    result = leenet_fx.fit(ee, train, method="e2cm", epochs=7)
    # The scale of features, the means, and the loss that is reported.
    assert train.passes == 3
    assert all(torch.equal(before[name], p) for name, p in ee.named_parameters())
    x, labels = data(40)
    losses = cross_entropies([array(at) for at in everything(ee, x).logits[:-1]], labels)
    assert result.history[0].train_loss == pytest.approx(sum(losses), rel=1e-4)
    # Means of the exit's vectors, class by class.
    stages = list(ee.exit_features(x))[:-1]
    for part, features in zip(ee.exits, stages, strict=True):
        vectors = array(part.neck(*part.pool(*features)))
        means = np.stack([vectors[labels.numpy() == k].mean(0) for k in range(5)])
        assert np.allclose(array(part.head.means), means, atol=1e-6)
    again = copy.deepcopy(ee)
    leenet_fx.fit(again, train, method="e2cm")
    assert same(ee, again)


def test_shallow_deep_fits_classifiers_as_leenet_does():
    ee, other = attached("shallow-deep"), attached("leenet")
    leenet_fx.fit(
        ee, loader(), method=leenet_fx.get_method("shallow-deep", threshold=0.8), epochs=2
    )
    leenet_fx.fit(other, loader(), method="leenet", epochs={"exits": 2, "gates": 0})
    assert equal(heads_of(ee), heads_of(other))
    assert ee.policy == MaxProbability(0.8)
    assert other.policy == NeverExit()


def test_pabees_patience_is_not_that_of_early_stopping():
    ee = attached("pabee")
    result = leenet_fx.fit(
        ee,
        loader(48),
        loader(24),
        method=leenet_fx.get_method("pabee", agreements=1),
        epochs=2,
        patience=2,
    )
    assert len(result.history) == 2
    assert ee.policy == Patience(1)
    # Two exits at least: nobody leaves at the first.
    assert ee.predict(data()[0]).exit_index.min() == 1


def test_ztw_answers_with_ensembles_once_they_are_trained():
    x = data(24, seed=5)[0]
    alone = fitted("ztw", epochs={"exits": 2, "ensembles": 0})
    ee = fitted("ztw", epochs={"exits": 2, "ensembles": 3})
    assert equal(heads_of(alone), heads_of(ee))
    before = {name for name in state(ee) if "head.weights" in name or "head.bias" in name}
    assert before <= moved(state(alone), state(ee))
    z = [array(at) for at in everything(alone, x).logits[:-1]]
    for index, (part, found) in enumerate(zip(ee.exits, everything(ee, x).logits, strict=False)):
        weights = np.exp(array(part.head.weights))
        mixed = sum(w * log_softmax(at) for w, at in zip(weights, z, strict=False)) / (index + 1)
        assert np.allclose(found, mixed + array(part.head.bias), atol=1e-4)
    # Classifiers that train anew answer for themselves meanwhile, and afterwards.
    leenet_fx.fit(ee, loader(), method="ztw", epochs={"exits": 1, "ensembles": 0})
    part = ee.exits[0]
    features = next(ee.exit_features(x))
    own = part.head.linear(part.neck(*part.pool(*features)))
    assert torch.allclose(ee.all_exits(x).logits[0], own, atol=1e-5)


def test_boostnets_logits_add_up():
    ee = fitted("boostnet")
    x = data(24, seed=5)[0]
    found = everything(ee, x).logits
    stages = list(ee.exit_features(x))[:-1]
    for index, (part, features) in enumerate(zip(ee.exits, stages, strict=True)):
        vectors = array(part.neck(*part.pool(*features)))
        own = vectors @ array(part.head.linear.weight).T + array(part.head.linear.bias)
        before = array(found[index - 1]) if index else 0
        assert np.allclose(array(found[index]) - before, own, atol=1e-4)


def test_one_dial_turns_the_cost():
    ee = attached("leenet-dial")
    leenet_fx.fit(ee, loader(), method="leenet-dial", epochs={"exits": 6, "gates": 0})
    assert ee.policy == NeverExit()
    with torch.no_grad():
        for part, noise in zip(ee.exits, (4, 2.7, 1.3, 0), strict=True):
            # So that later exits know more.
            weight = part.head.linear.weight
            weight += noise * weight.std() * images(*weight.shape)
    leenet_fx.fit(ee, loader(), method="leenet-dial", epochs={"exits": 0, "gates": 20}, alpha=0.3)
    assert ee.policy == AlphaConditionedGate(0.3)
    x = data()[0]
    spent = [float(ee.predict(x, alpha=alpha).cost.mean()) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(later < earlier for earlier, later in pairwise(spent))
    assert spent[0] > spent[-1] + 0.1
    assert ee.predict(x, alpha=1.0).exit_index.tolist() == [0] * len(x)
    assert torch.equal(ee.predict(x).exit_index, ee.predict(x, alpha=0.3).exit_index)
    for alpha in (-0.1, 1.1, "high"):
        with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\]"):
            ee.predict(x, alpha=alpha)
    for policy in (GateThreshold(0.0), MaxProbability(0.9), NeverExit()):
        ee.policy = policy
        with pytest.raises(InputError, match=r"no dial to turn to alpha=0\.5"):
            ee.predict(x, alpha=0.5)


def test_a_dial_needs_gates_with_a_dial():
    ee = attached("leenet")
    with pytest.raises(InputError, match=r"needs branches with gate='dial', .* gate=None"):
        leenet_fx.fit(ee, loader(), method="leenet-dial")
    for method, head in (("ztw", "cascade"), ("boostnet", "additive"), ("e2cm", "means")):
        with pytest.raises(InputError, match=f"head='{head}'.*attach with method='{method}'"):
            leenet_fx.fit(ee, loader(), method=method)


def test_distilled_exits_learn_from_the_final_classifier():
    x, labels = data(48)
    right = DataLoader(TensorDataset(x, labels), 16)
    wrong = DataLoader(TensorDataset(x, labels.flip(0)), 16)
    ends = {
        (mix, name): fitted("distilled", train, mix=mix)
        for mix in (0.0, 0.5, 1.0)
        for name, train in (("right", right), ("wrong", wrong))
    }
    assert same(ends[1.0, "right"], ends[1.0, "wrong"])
    assert not same(ends[0.5, "right"], ends[0.5, "wrong"])
    assert equal(heads_of(ends[0.0, "right"]), heads_of(fitted("shallow-deep", right)))
    # All of the lesson is the final classifier's: with training, exits answer as it does.
    ee = fitted("distilled", right, mix=1.0, epochs=20)
    logits = everything(ee, x).logits
    assert float((logits[-2].argmax(1) == logits[-1].argmax(1)).float().mean()) > 0.8


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", PRESETS)
def test_an_unknown_override_names_those_there_are(method):
    ee = attached(method)
    before = state(ee)
    known = ", ".join(sorted(list_method_options(method)))
    with pytest.raises(UnknownNameError, match=f"option of method '{method}'.*: {known}"):
        leenet_fx.fit(ee, loader(), method=leenet_fx.get_method(method, colour="red"))
    with pytest.raises(UnknownNameError, match=f"option of method '{method}' 'name'"):
        leenet_fx.fit(ee, loader(), method=method, name="mine")
    assert not moved(before, state(ee))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("eenets", {"two_stage": object()}, "must be plain values"),
        ("leenet", {"tempered": {1, 2}}, "must be plain values"),
        ("branchynet", {"recipe": "jiont"}, "recipe must be one of disjoint, joint, mixed"),
        ("diffbranch", {"recipe": None}, "recipe must be one of"),
        ("eenets", {"recipe": 3}, "recipe must be one of"),
        ("branchynet", {"weights": 0.3}, "'weights' must be numbers"),
        ("branchynet", {"weights": (1, -1, 1, 1, 1)}, "'weights' must be numbers"),
        ("branchynet", {"weights": (1, 1)}, "2 weights, but the network has 5 outlets"),
        ("branchynet", {"threshold": "low"}, "Thresholds must be a number"),
        ("msdnet", {"threshold": torch.tensor(0.5)}, "Thresholds must be a number"),
        ("shallow-deep", {"threshold": float("nan")}, "must not be NaN"),
        ("shallow-deep", {"threshold": [0.5, 0.6]}, "2 thresholds, but the network has 4 exits"),
        ("pabee", {"agreements": 0}, "whole numbers of at least 1"),
        ("eenets", {"version": 5}, "'version' must be an integer from 0 to 4"),
        ("jei-dnn", {"period": 0}, "period must be a whole number of batches from 1"),
        ("jei-dnn", {"period": True}, "period must be"),
        ("distilled", {"mix": 1.5}, "'mix' must be"),
        ("distilled", {"temperature": 0}, "'temperature' must be"),
    ],
)
def test_overrides_that_do_not_fit(method, options, message):
    ee = attached(method)
    before = state(ee)
    with pytest.raises(InputError, match=message):
        leenet_fx.fit(ee, loader(), method=method, epochs=1, **options)
    assert not moved(before, state(ee))
    assert ee.policy == NeverExit()


@pytest.mark.parametrize("method", sorted(GATED))
def test_the_weight_of_the_cost(method):
    ee = attached(method)
    as_lambda = method in {"diffbranch", "eenets", "jei-dnn", "pteenet"}
    bad = (-0.1, math.nan, math.inf, True, "high") + (() if as_lambda else (1.2,))
    expected = "be 0 or more, and finite" if as_lambda else r"lie in \[0, 1\]"
    for alpha in bad:
        with pytest.raises(InputError, match=f"alpha, the weight of the cost, must {expected}"):
            leenet_fx.fit(ee, loader(), method=method, alpha=alpha)
    if as_lambda:
        result = leenet_fx.fit(ee, loader(32), method=method, epochs=1, alpha=3)
        assert result.alpha == 3.0


@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"pteenet"}))
def test_images_without_labels(method):
    ee = attached(method)
    before = state(ee)
    x = data(16)[0]
    with pytest.raises(InputError, match=r"train must yield .* labels are absent"):
        leenet_fx.fit(ee, DataLoader(x, 8), method=method, epochs=1)
    if method not in JOINT:
        with (
            cache_features(ee, DataLoader(x, 8), labelled=False) as kept,
            pytest.raises(InputError, match="train: the images were cached without labels"),
        ):
            leenet_fx.fit(ee, kept, method=method, epochs=1)
    assert not moved(before, state(ee))


@pytest.mark.parametrize("method", PRESETS)
def test_images_that_are_nan(method):
    """From the start, and once everything was measured: all is as it was."""
    x, labels = data(20)

    class Failing:
        def __init__(self, good):
            self.good = good

        def __iter__(self):
            self.good -= 1
            return iter([(x if self.good >= 0 else x * math.nan, labels)])

    measured = 2 if method in {"diffbranch", "pteenet"} else 1
    for good in (0, measured):
        ee = attached(method).train()
        before = state(ee)
        with pytest.raises(TrainingError, match="NaN in the images"):
            leenet_fx.fit(ee, Failing(good), method=method, epochs=2)
        assert not moved(before, state(ee))
        assert ee.training
        assert ee.policy == NeverExit()


@pytest.mark.parametrize("method", PRESETS)
def test_two_classes_of_which_one_has_no_image(method):
    """Class means need an image of each."""
    x, labels = data(40, classes=2)
    given = TensorDataset(x, labels if method == "e2cm" else torch.zeros_like(labels))
    ee = fitted(method, DataLoader(given, 20), fresh(method, tiny(classes=2)), epochs=1)
    found = ee.predict(x)
    assert found.logits.shape == (40, 2)
    assert bool(torch.cat([found.logits, found.cost.unsqueeze(1)], 1).isfinite().all())
    assert bool(everything(ee, x).gate_logits.isfinite().all())


@pytest.mark.parametrize("method", ["leenet", "eenets", "jei-dnn", "ztw"])
def test_classes_that_have_no_image(method):
    """Classes 3 and 4 of 5: nobody is sent there."""
    ee = fitted(method, loader(48, classes=3), epochs=4)
    logits = everything(ee, data(24, seed=5, classes=3)[0]).logits
    assert all(bool(at.isfinite().all()) for at in logits)
    assert int(logits[0].argmax(1).max()) <= 2


# --- budgets -----------------------------------------------------------------------------------


def confidence(policy, outputs):
    """(samples, exits), the larger the sooner one leaves, by the formula of each policy."""
    logits = [array(at) for at in outputs.logits[:-1]]
    if isinstance(policy, GateThreshold):
        return array(outputs.gate_logits)
    if isinstance(policy, Entropy):
        return np.stack([-entropy(softmax(at)) for at in logits], 1)
    return np.stack([softmax(at).max(1) for at in logits], 1)


def mean_cost(found, threshold, costs):
    left = [first([value >= threshold for value in row]) for row in found.tolist()]
    return sum(costs[at] for at in left) / len(left)


@pytest.fixture(scope="module")
def unsure():
    """A network whose exits are unsure of many images, and images it was not fitted on."""
    ee = attached("leenet")
    leenet_fx.fit(ee, loader(), epochs=2, lr=0.003, method="leenet")
    return ee, data(48, seed=5)[0]


@pytest.mark.parametrize("policy", [MaxProbability(0.9), Entropy(0.5), GateThreshold(0.0)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_common_threshold_spends_what_the_budget_allows(unsure, policy, share):
    """The next stricter of all thresholds that were observed would spend more."""
    ee, x = unsure
    ee.policy = policy
    costs = ee.costs.relative()
    budget = costs[0] + share * (costs[-1] - costs[0])
    found = set_budget(ee, DataLoader(x, 20), budget)
    assert found is ee.policy
    assert type(found) is type(policy)
    assert len(set(found.thresholds)) == 1
    assert float(ee.predict(x).cost.mean()) <= budget + 1e-6
    seen = confidence(policy, everything(ee, x))
    threshold = found.sign * found.thresholds[0]
    assert mean_cost(seen, threshold - 1e-6, costs) <= budget
    stricter = seen[seen > threshold + 1e-6]
    assert mean_cost(seen, stricter.min() if len(stricter) else math.inf, costs) > budget


def test_all_the_budget_there_is_runs_the_whole_network(unsure):
    ee, x = unsure
    ee.policy = MaxProbability(0.9)
    policy = set_budget(ee, DataLoader(x, 20), ee.costs.relative()[-1])
    assert policy.thresholds == (math.inf,) * 4
    assert ee.predict(x).exit_index.tolist() == [4] * 48


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_msdnets_exponential_shares_stay_within_the_budget(share):
    ee = fitted("msdnet", epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    budget = costs[0] + share * (costs[-1] - costs[0])
    policy = set_budget(ee, DataLoader(x, 20), budget, solver="exponential")
    assert len(policy.thresholds) == 4
    found = ee.predict(x)
    spent = [costs[at] for at in found.exit_index.tolist()]
    assert float(found.cost.mean()) == pytest.approx(sum(spent) / 48, rel=1e-5)
    assert sum(spent) / 48 <= budget + 1e-6
    # It does not leave much of it: the finest step is a sample that goes to the end.
    assert sum(spent) / 48 > budget - 0.15


def test_a_budget_of_agreements():
    ee = fitted("pabee", epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    for budget in (costs[2], costs[3], costs[4]):
        policy = set_budget(ee, DataLoader(x, 20), budget)
        assert isinstance(policy, Patience)
        assert float(ee.predict(x).cost.mean()) <= budget + 1e-6


def test_a_budget_keeps_the_dial():
    ee = fitted("leenet-dial", alpha=0.2, epochs=1)
    x = data(48, seed=5)[0]
    costs = ee.costs.relative()
    budget = (costs[0] + costs[-1]) / 2
    policy = set_budget(ee, DataLoader(x, 20), budget)
    assert policy.alpha == 0.2
    assert isinstance(policy, AlphaConditionedGate)
    assert float(ee.predict(x).cost.mean()) <= budget + 1e-6
    # Anything stricter, as gates are at this α, would spend more.
    ee.policy = AlphaConditionedGate(0.2, policy.thresholds[0] + 1e-4)
    assert float(ee.predict(x).cost.mean()) > budget


def test_budgets_read_no_labels(unsure):
    ee, x = unsure
    found = []
    for train in (
        DataLoader(x, 20),
        DataLoader(TensorDataset(x, torch.full((48,), 99)), 20),
        [x[:30], x[30:]],
    ):
        ee.policy = MaxProbability(0.9)
        found.append(set_budget(ee, train, 0.6))
    with cache_features(ee, DataLoader(x, 20), labelled=False) as kept:
        ee.policy = MaxProbability(0.1)
        found.append(set_budget(ee, kept, 0.6))
    thresholds = [policy.thresholds[0] for policy in found]
    assert thresholds == pytest.approx([thresholds[0]] * 4, abs=1e-6)


def test_budgets_that_cannot_be(unsure):
    ee, x = unsure
    ee.policy = MaxProbability(0.9)
    first_exit = ee.costs.relative()[0]
    for budget in (first_exit - 1e-3, -1.0, math.nan):
        with pytest.raises(InputError, match="a mean cost can only lie between"):
            set_budget(ee, DataLoader(x, 20), budget)
    assert ee.policy == MaxProbability(0.9)
    with pytest.raises(UnknownNameError, match="Did you mean 'exponential'"):
        set_budget(ee, DataLoader(x, 20), 0.6, solver="exponental")
    with pytest.raises(UnknownNameError, match="Did you mean 'flops'"):
        set_budget(ee, DataLoader(x, 20), 0.6, cost="flop")
    ee.policy = NeverExit()
    with pytest.raises(InputError, match="no thresholds: fit first"):
        set_budget(ee, DataLoader(x, 20), 0.6)


@pytest.mark.parametrize("method", sorted(set(PRESETS) - GATED))
def test_without_gates_nothing_weighs_the_cost(method):
    with pytest.raises(InputError, match=f"'{method}' trains no gates.* got alpha=0.5"):
        leenet_fx.fit(attached(method), loader(), method=method, alpha=0.5)


def test_the_default_needs_no_gates_and_refuses_a_weight_of_the_cost():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    before = state(ee)
    with pytest.raises(
        InputError, match=r"'shallow-deep' trains no gates.* got alpha=0.3.*'leenet'"
    ):
        leenet_fx.fit(ee, loader(), alpha=0.3)
    assert not moved(before, state(ee))
    leenet_fx.fit(ee, loader(), epochs=2)
    assert ee.policy == MaxProbability(0.9)
    assert leenet_fx.fit(ee, loader(), epochs=1).method == DEFAULT == "shallow-deep"


def test_the_command_line_has_the_same_default():
    assert inspect.signature(fit_by_command).parameters["method"].default == DEFAULT
