"""Objectives against their formulas, written out sample by sample."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_helpers import make

from leenet_fx.objectives import (
    BoostNet,
    BranchyNet,
    DepthWeighted,
    DifferentiableBranching,
    Distillation,
    EENets,
    FinalClassifier,
    JEIDNNGates,
    JEIDNNHeads,
    LEENet,
    PTEEnet,
    ShallowDeep,
    SumOfExits,
)


class Naive:
    """Probabilities of a batch, not log probabilities: one sample and one classifier at a time."""

    def __init__(self, outputs):
        self.samples, self.last = outputs.gate_logits.shape
        self.exits, self.classifiers = range(self.last), range(self.last + 1)
        self.logits = outputs.logits
        self.labels = outputs.labels.tolist()
        self.c = outputs.costs.tolist()
        self.cost_weight = outputs.cost_weight
        rows = [list(row) for row in outputs.gate_logits]
        # 1/(1+e^z) and not 1−g, for 1−g is 0 in double precision from z = 37 on.
        self.opens = [[1 / (1 + (-z).exp()) for z in row] for row in rows]
        self.passes = [[1 / (1 + z.exp()) for z in row] for row in rows]
        self.p = [[softmax(at[b]) for at in outputs.logits] for b in range(self.samples)]

    def mean(self, of_sample):
        return sum(of_sample(b) for b in range(self.samples)) / self.samples

    def ce(self, b, i):
        return -self.p[b][i][self.labels[b]].log()

    def mean_ce(self, i):
        return self.mean(lambda b: self.ce(b, i))

    def q(self, b, i):
        opens = self.opens[b][i] if i < self.last else 1
        return math.prod(self.passes[b][:i], start=1) * opens

    def mixture(self, b, i):
        if i == self.last:
            return self.p[b][i]
        return self.opens[b][i] * self.p[b][i] + self.passes[b][i] * self.mixture(b, i + 1)

    def mixture_cost(self, b, i):
        if i == self.last:
            return self.c[i]
        return self.opens[b][i] * self.c[i] + self.passes[b][i] * self.mixture_cost(b, i + 1)

    def mixture_loss(self, i):
        return self.mean(
            lambda b: (
                -self.mixture(b, i)[self.labels[b]].log()
                + self.cost_weight * self.mixture_cost(b, i)
            )
        )

    def best(self, b):
        return min(
            self.classifiers, key=lambda i: self.ce(b, i).item() + self.cost_weight * self.c[i]
        )

    def exit_weight(self, b, i):
        """max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)), the rest for the final classifier."""
        remaining = 1.0
        for j in self.exits:
            g = self.opens[b][j].item()
            weight = max(0.0, min(g, remaining))
            if j == i:
                return weight
            remaining -= g
        return max(0.0, remaining)


def softmax(logits):
    return logits.exp() / logits.exp().sum()


def average(values):
    return sum(values) / len(values)


def leenet(n):
    error = n.mean(lambda b: sum(n.q(b, i) * n.ce(b, i) for i in n.classifiers))
    cost = n.mean(lambda b: sum(n.q(b, i) * n.c[i] for i in n.classifiers))
    return (1 - n.cost_weight) * error + n.cost_weight * cost


def eenets_v3(n):
    means = [n.mean(lambda b, i=i: n.opens[b][i]) for i in n.exits] + [1.0]
    return sum(
        means[i] / sum(means) * (n.mean_ce(i) + n.cost_weight * n.c[i]) for i in n.classifiers
    )


def eenets_v4(n):
    targets = [n.best(b) for b in range(n.samples)]
    loss = n.mean(lambda b: n.ce(b, targets[b]) + n.cost_weight * n.c[targets[b]])
    for i in n.exits:
        positive = [-n.opens[b][i].log() for b, target in enumerate(targets) if target == i]
        negative = [-n.passes[b][i].log() for b, target in enumerate(targets) if target > i]
        if positive and negative:
            loss = loss + (average(positive) + average(negative)) / 2
        elif positive or negative:
            loss = loss + average(positive + negative)
    return loss


def eenets_4_as_published(n):
    loss = n.mean(lambda b: n.ce(b, n.best(b)) + n.cost_weight * n.c[n.best(b)])
    for i in n.exits:
        share = sum(n.best(b) == i for b in range(n.samples)) / n.samples
        for b in range(n.samples):
            positive = n.best(b) == i
            weight = 1 - share if positive else share
            loss = loss - weight * (n.opens if positive else n.passes)[b][i].log() / n.samples
    return loss


def jei_dnn_gates(n, limit):
    zeros, ones = [], []
    for b in range(n.samples):
        best = n.best(b)
        for i in n.exits:
            if best <= i:
                ones.append(-n.opens[b][i].log())
            else:
                zeros.append(-n.passes[b][i].log())
    weight = min(len(zeros) / max(len(ones), 1) if zeros else 1, limit)
    return (sum(zeros) + weight * sum(ones)) / (len(zeros) + len(ones))


def distillation(n, mix, t):
    loss = 0
    for i in n.exits:
        for b in range(n.samples):
            teacher = softmax(n.logits[-1][b].detach() / t)
            student = softmax(n.logits[i][b] / t)
            divergence = sum(
                p * (p / q).log() for p, q in zip(teacher, student, strict=True) if p > 0
            )
            loss = loss + ((1 - mix) * n.ce(b, i) + mix * t**2 * divergence) / n.samples
    return loss


def shallow_deep(n, progress):
    tau = [0.01 + progress * (min(c, 1) - 0.01) for c in n.c]
    return sum(tau[i] * n.mean_ce(i) for i in n.exits) + n.mean_ce(n.last)


def test_shallow_deep_weights_rise_during_training():
    outputs = make(5, 3)
    for progress in (0.0, 0.25, 1.0):
        found = ShallowDeep()(replace(outputs, progress=progress))
        assert float(found) == pytest.approx(
            float(shallow_deep(Naive(outputs), progress)), rel=1e-5
        )


CASES = [
    (SumOfExits(), lambda n: sum(n.mean_ce(i) for i in n.exits)),
    (FinalClassifier(), lambda n: n.mean_ce(n.last)),
    (LEENet(), leenet),
    (BranchyNet(), lambda n: sum(n.mean_ce(i) for i in n.exits) + 0.3 * n.mean_ce(n.last)),
    (ShallowDeep(), lambda n: shallow_deep(n, 1)),
    (
        DepthWeighted(),
        lambda n: (
            sum((i + 1) * n.mean_ce(i) for i in n.classifiers) / sum(i + 1 for i in n.classifiers)
        ),
    ),
    (DifferentiableBranching(), lambda n: n.mixture_loss(0)),
    (EENets(version=0), lambda n: sum(n.mean_ce(i) for i in n.classifiers)),
    (EENets(version=1), lambda n: n.mixture_loss(0)),
    (EENets(version=2), lambda n: sum(n.mixture_loss(i) for i in n.classifiers)),
    (EENets(version=3), eenets_v3),
    (EENets(version=4), eenets_v4),
    (PTEEnet(), lambda n: sum(n.mixture_loss(i) for i in n.exits)),
    (
        JEIDNNHeads(),
        lambda n: n.mean(lambda b: sum(n.exit_weight(b, i) * n.ce(b, i) for i in n.classifiers)),
    ),
    (EENets(4, published_weights=True), eenets_4_as_published),
    (JEIDNNGates(), lambda n: jei_dnn_gates(n, 5)),
    (JEIDNNGates(max_positive_weight=0.5), lambda n: jei_dnn_gates(n, 0.5)),
    (Distillation(), lambda n: distillation(n, 0.5, 2)),
    (Distillation(mix=0.9, temperature=0.7), lambda n: distillation(n, 0.9, 0.7)),
    (BoostNet(), lambda n: sum(n.mean_ce(i) / (n.last + 1 - i) for i in n.classifiers)),
]


every_objective = pytest.mark.parametrize(
    ("objective", "formula"), CASES, ids=[repr(objective) for objective, _ in CASES]
)


def cast(outputs, dtype):
    return replace(
        outputs,
        logits=tuple(at.to(dtype) for at in outputs.logits),
        gate_logits=outputs.gate_logits.to(dtype),
        costs=outputs.costs.to(dtype),
    )


def value_and_gradients(loss_of, outputs):
    """The loss and its gradients in logits and gate logits; 0 if it does not depend on them."""
    logits = tuple(at.clone().requires_grad_() for at in outputs.logits)
    gate_logits = outputs.gate_logits.clone().requires_grad_()
    loss = loss_of(replace(outputs, logits=logits, gate_logits=gate_logits))
    assert loss.shape == ()
    found = torch.autograd.grad(loss, [*logits, gate_logits], materialize_grads=True)
    return [loss.detach(), *found]


def assert_equals_formula(objective, formula, outputs, dtype=torch.float64, **tolerance):
    found = value_and_gradients(objective, cast(outputs, dtype))
    expected = value_and_gradients(lambda at: formula(Naive(at)), outputs)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, **tolerance)


@every_objective
@settings(deadline=None, max_examples=20)
@given(
    samples=st.integers(1, 4),
    exits=st.integers(1, 3),
    classes=st.integers(2, 4),
    gate=st.sampled_from([None, None, 15.0, 40.0]),
    cost_weight=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 10**6),
)
def test_value_and_gradient_equal_the_formula(
    objective, formula, samples, exits, classes, gate, cost_weight, seed
):
    outputs = make(samples, exits, classes, gate=gate, cost_weight=cost_weight, seed=seed)
    assert_equals_formula(objective, formula, outputs, rtol=1e-9, atol=1e-12)


EDGES = {
    "one exit": make(5, 1),
    "one sample": make(1, 3),
    "two classes": make(5, 2, 2),
    "cost weight 0": make(5, 3, cost_weight=0.0),
    "cost weight 1": make(5, 3, cost_weight=1.0),
    "all cost more than the backbone": make(5, 2, costs=[1.1, 1.7, 2.5]),
    "saturated gates": make(5, 3, gate=40.0),
    "one exit, saturated": make(4, 1, 2, gate=40.0),
}


@every_objective
@pytest.mark.parametrize("edge", EDGES)
def test_value_and_gradient_equal_the_formula_at_the_edges(objective, formula, edge):
    assert_equals_formula(objective, formula, EDGES[edge], rtol=1e-9, atol=1e-12)


@every_objective
@pytest.mark.parametrize("spread", [2.0, 40.0], ids=["small logits", "large logits"])
def test_single_precision_is_exact_where_gates_saturate(objective, formula, spread):
    outputs = cast(make(6, 3, 2, gate=100.0, spread=spread), torch.float32)
    outputs = cast(outputs, torch.float64)
    assert_equals_formula(objective, formula, outputs, torch.float32, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [objective for objective, _ in CASES], ids=repr)
def test_gates_are_read_only_if_declared(objective):
    outputs = make(4, 2)
    unread = replace(outputs, gate_logits=torch.full_like(outputs.gate_logits, math.nan))
    reads = bool(objective(unread).isnan())
    assert reads == ("gates" in objective.uses and objective != EENets(version=0))


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_leenet_is_linear_in_alpha(alpha, seed):
    outputs = make(3, 2, seed=seed)
    at = [LEENet()(replace(outputs, cost_weight=weight)) for weight in (0.0, 1.0, alpha)]
    torch.testing.assert_close(at[2], (1 - alpha) * at[0] + alpha * at[1])


SOFT = [LEENet(), DifferentiableBranching(), EENets(version=1), JEIDNNHeads()]


@pytest.mark.parametrize("objective", SOFT, ids=repr)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_closed_gates_give_the_cross_entropy_of_the_final_classifier(objective, exits, seed):
    outputs = cast(make(3, exits, cost_weight=0.0, seed=seed), torch.float32)
    closed = replace(outputs, gate_logits=torch.full_like(outputs.gate_logits, -100.0))
    torch.testing.assert_close(objective(closed), FinalClassifier()(outputs))


@pytest.mark.parametrize("objective", SOFT, ids=repr)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_an_open_first_gate_gives_the_cross_entropy_of_the_first_exit(objective, exits, seed):
    outputs = cast(make(3, exits, cost_weight=0.0, seed=seed), torch.float32)
    gate_logits = outputs.gate_logits.clone()
    gate_logits[:, 0] = 100.0
    torch.testing.assert_close(
        objective(replace(outputs, gate_logits=gate_logits)), outputs.losses[:, 0].mean()
    )


ADDITIVE = [
    LEENet(),
    DifferentiableBranching(),
    EENets(1),
    EENets(2),
    PTEEnet(),
    # Without the weight of its targets, which depends on all of the batch.
    JEIDNNGates(max_positive_weight=0.0),
]


@pytest.mark.parametrize("objective", ADDITIVE, ids=repr)
def test_samples_may_have_different_cost_weights(objective):
    outputs = make(3, 2)  # as many samples as classifiers, so that the wrong axis would fit too
    weights = [0.0, 0.3, 1.0]
    single = [
        replace(
            outputs,
            logits=tuple(at[b : b + 1] for at in outputs.logits),
            gate_logits=outputs.gate_logits[b : b + 1],
            labels=outputs.labels[b : b + 1],
            cost_weight=weight,
        )
        for b, weight in enumerate(weights)
    ]
    joint = replace(outputs, cost_weight=torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(objective(joint), average([objective(one) for one in single]))
