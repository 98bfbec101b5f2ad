"""Networks with randomized exits, and reference implementations in plain Python."""

import torch
from helpers import array, counter, first, probabilities, votes
from networks import images, tiny
from torch import nn

import leenet_fx
from leenet_fx import MaxProbability, Patience, Vote
from leenet_fx.parts.branches import run_branches
from leenet_fx.policies import AlphaConditionedGate

EXAMPLE = images(1, 3, 16, 16)

BATCH = images(20, 3, 16, 16, seed=3)

STEM, BLOCK = 2 * 3 * 8 * 9 * 256, 2 * 2 * 8 * 8 * 9 * 256


def attached(branch="pool", model=None, **options):
    model = tiny() if model is None else model
    return leenet_fx.attach(
        model, "every", example_inputs=EXAMPLE, branch=branch, branch_options=options
    )


@torch.no_grad()
def randomized(ee, seed=1):
    """Randomize exits so that nothing is 0, and samples and exits differ."""
    drawn = torch.Generator().manual_seed(seed)

    def draw(*shape, spread=1.0):
        return torch.randn(*shape, generator=drawn) * spread

    features = list(ee.exit_features(BATCH))[:-1]
    pooled = [branch.pool(*at) for branch, at in zip(ee.exits, features, strict=True)]
    for branch, at in zip(ee.exits, pooled, strict=True):
        branch.fit_input_statistics(*at)
        for module in branch.neck.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.copy_(draw(len(module.running_mean), spread=0.2))
        vectors, head = branch.neck(*at), getattr(branch, "head", None)
        linear = branch.projection if head is None else getattr(head, "linear", None)
        if linear is not None:
            weight = draw(*linear.weight.shape)
            products = vectors @ weight.T
            linear.weight.copy_(weight / products.std(0).unsqueeze(1))
            linear.bias.copy_(-products.mean(0) / products.std(0))
        if hasattr(head, "before"):
            head.before.weight.copy_(draw(5, 5, spread=0.5))
        if hasattr(head, "ensembles"):
            head.ensembles.fill_(True)
            head.weights.copy_(draw(len(head.weights), spread=0.5))
            head.bias.copy_(draw(5, spread=0.2))
        if hasattr(head, "means"):
            first_sample = 5 * branch.site.position
            head.means.copy_(vectors[first_sample : first_sample + 5])
            head.spread.fill_((vectors - vectors.mean(0)).square().sum(1).mean() / 2)
        if hasattr(branch, "gate"):
            branch.gate.linear.weight.copy_(draw(*branch.gate.linear.weight.shape))
    for branch, (_, _, gate_inputs) in zip(ee.exits, run_branches(ee.exits, pooled), strict=True):
        branch.fit_gate_statistics(gate_inputs)
    return ee


def all_exits(ee, x=BATCH):
    with torch.no_grad():
        return ee.all_exits(x)


def logits_at(outputs, exit_index):
    """Logits of each sample at its exit."""
    pairs = zip(exit_index, range(len(BATCH)), strict=True)
    return torch.stack([outputs.logits[at][sample] for at, sample in pairs])


def histories(outputs):
    """Logits of each sample at each exit, as lists."""
    exits = [at.double().tolist() for at in outputs.logits[:-1]]
    return [[at[sample] for at in exits] for sample in range(len(outputs.gate_logits))]


def thresholds_and_exits(values):
    """Thresholds at which a quarter of the remaining samples exit, and the exit of each sample.

    Args:
        values: for each sample its value at each exit.
    """
    remaining = list(range(len(values)))
    thresholds, expected_exits = [], [len(values[0])] * len(values)
    for index in range(len(values[0])):
        ranked = sorted((values[sample][index] for sample in remaining), reverse=True)
        k = max(1, len(ranked) // 4)
        assert ranked[k - 1] - ranked[k] > 1e-6
        thresholds.append((ranked[k - 1] + ranked[k]) / 2)
        for sample in remaining:
            if values[sample][index] >= thresholds[-1]:
                expected_exits[sample] = index
        remaining = [sample for sample in remaining if expected_exits[sample] == len(values[0])]
    return thresholds, expected_exits


def policy_and_exits(outputs, kind):
    """A policy under which samples exit at every exit, and the exit of each by a plain loop."""
    sample_histories = histories(outputs)
    if kind in (Patience, Vote):
        measure, threshold = (counter, 1) if kind is Patience else (votes, 2)
        expected_exits = [
            first([measure(history[: i + 1]) >= threshold for i in range(len(history))])
            for history in sample_histories
        ]
        return kind(threshold), expected_exits
    if kind is MaxProbability:
        values = [[max(probabilities(row)) for row in history] for history in sample_histories]
    else:
        values = outputs.gate_logits.double().tolist()
    thresholds, expected_exits = thresholds_and_exits(values)
    return (
        AlphaConditionedGate(0.5, thresholds) if kind is AlphaConditionedGate else kind(thresholds)
    ), expected_exits


def neck_vectors(ee, x=BATCH):
    """The neck's vectors at each exit, in double precision."""
    with torch.no_grad():
        stages = list(ee.exit_features(x))[:-1]
        vectors = [b.neck(*b.pool(*at)) for b, at in zip(ee.exits, stages, strict=True)]
    return [vector.double().numpy() for vector in vectors]


def neck_vectors_at(ee, index):
    part = ee.exits[index]
    with torch.no_grad():
        features = list(ee.exit_features(BATCH))[index]
        return array(part.neck(*part.pool(*features)))
