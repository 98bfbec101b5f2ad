"""Every objective against its formula, written out sample by sample; and at the edges."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leenet_fx.calibration.temperature import fit_temperature
from leenet_fx.errors import InputError, UnknownNameError
from leenet_fx.objectives import (
    PABEE,
    BatchOutputs,
    BoostNet,
    BranchyNet,
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
    SumOfObjectives,
    exit_log_probabilities,
    exit_losses,
    get_objective,
    list_objectives,
    mixture_costs,
    mixture_log_probabilities,
)

PUBLISHED = {
    "boostnet": BoostNet,
    "branchynet": BranchyNet,
    "diffbranch": DifferentiableBranching,
    "distillation": Distillation,
    "eenets": EENets,
    "exits": SumOfExits,
    "final": FinalClassifier,
    "jei-dnn-gates": JEIDNNGates,
    "jei-dnn-heads": JEIDNNHeads,
    "leenet": LEENet,
    "pabee": PABEE,
    "pteenet": PTEEnet,
    "shallow-deep": ShallowDeep,
    "sum": SumOfObjectives,
}


class Naive:
    """A batch in probabilities, not in logarithms: one sample and one outlet at a time."""

    def __init__(self, outputs):
        self.samples, self.last = outputs.gate_logits.shape
        self.exits, self.outlets = range(self.last), range(self.last + 1)
        self.logits = outputs.logits
        self.labels = outputs.labels.tolist()
        self.c = outputs.costs.tolist()
        self.weight = outputs.weight
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
                -self.mixture(b, i)[self.labels[b]].log() + self.weight * self.mixture_cost(b, i)
            )
        )

    def best(self, b):
        return min(self.outlets, key=lambda i: self.ce(b, i).item() + self.weight * self.c[i])

    def share(self, b, i):
        """max(0, min(gᵢ, 1 − Σ_{j<i} gⱼ)), the rest to the final classifier."""
        left = 1.0
        for j in self.exits:
            g = self.opens[b][j].item()
            taken = max(0.0, min(g, left))
            if j == i:
                return taken
            left -= g
        return max(0.0, left)


def softmax(logits):
    return logits.exp() / logits.exp().sum()


def average(values):
    return sum(values) / len(values)


def leenet(n):
    error = n.mean(lambda b: sum(n.q(b, i) * n.ce(b, i) for i in n.outlets))
    cost = n.mean(lambda b: sum(n.q(b, i) * n.c[i] for i in n.outlets))
    return (1 - n.weight) * error + n.weight * cost


def eenets_v3(n):
    means = [n.mean(lambda b, i=i: n.opens[b][i]) for i in n.exits] + [1.0]
    return sum(means[i] / sum(means) * (n.mean_ce(i) + n.weight * n.c[i]) for i in n.outlets)


def eenets_v4(n):
    tags = [n.best(b) for b in range(n.samples)]
    loss = n.mean(lambda b: n.ce(b, tags[b]) + n.weight * n.c[tags[b]])
    for i in n.exits:
        leave = [-n.opens[b][i].log() for b, tag in enumerate(tags) if tag == i]
        stay = [-n.passes[b][i].log() for b, tag in enumerate(tags) if tag > i]
        if leave and stay:
            loss = loss + (average(leave) + average(stay)) / 2
        elif leave or stay:
            loss = loss + average(leave + stay)
    return loss


def jei_dnn_gates(n):
    terms = []
    for b in range(n.samples):
        best = n.best(b)
        terms += [-(n.opens if best <= i else n.passes)[b][i].log() for i in n.exits]
    return average(terms)


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


def test_shallow_deep_weights_rise_while_training_goes_on():
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
        PABEE(),
        lambda n: sum((i + 1) * n.mean_ce(i) for i in n.outlets) / sum(i + 1 for i in n.outlets),
    ),
    (DifferentiableBranching(), lambda n: n.mixture_loss(0)),
    (EENets(version=0), lambda n: sum(n.mean_ce(i) for i in n.outlets)),
    (EENets(version=1), lambda n: n.mixture_loss(0)),
    (EENets(version=2), lambda n: sum(n.mixture_loss(i) for i in n.outlets)),
    (EENets(version=3), eenets_v3),
    (EENets(version=4), eenets_v4),
    (PTEEnet(), lambda n: sum(n.mixture_loss(i) for i in n.exits)),
    (
        JEIDNNHeads(),
        lambda n: n.mean(lambda b: sum(n.share(b, i) * n.ce(b, i) for i in n.outlets)),
    ),
    (JEIDNNGates(), jei_dnn_gates),
    (Distillation(), lambda n: distillation(n, 0.5, 2)),
    (Distillation(mix=0.9, temperature=0.7), lambda n: distillation(n, 0.9, 0.7)),
    (BoostNet(), lambda n: sum(n.mean_ce(i) / (n.last + 1 - i) for i in n.outlets)),
]
every_objective = pytest.mark.parametrize(
    ("objective", "formula"), CASES, ids=[repr(objective) for objective, _ in CASES]
)


def make(samples, exits, classes=3, *, gate=None, weight=0.5, costs=None, seed=0, spread=2.0):
    """A random batch in double precision; `gate` is the size of every gate logit, signs random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = tuple(spread * normal(samples, classes) for _ in range(exits + 1))
    gate_logits = 2 * normal(samples, exits)
    if gate is not None:
        gate_logits = gate * gate_logits.sign()
    labels = torch.randint(classes, (samples,), generator=generator)
    if costs is None:
        costs = 1.5 * torch.rand(exits + 1, generator=generator, dtype=torch.float64)
    return BatchOutputs(
        logits, gate_logits, labels, torch.as_tensor(costs, dtype=torch.float64), weight
    )


def cast(outputs, dtype):
    return replace(
        outputs,
        logits=tuple(at.to(dtype) for at in outputs.logits),
        gate_logits=outputs.gate_logits.to(dtype),
        costs=outputs.costs.to(dtype),
    )


def value_and_gradients(loss_of, outputs):
    """The loss, and its gradient in logits and gates; 0 where it does not depend on them."""
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
    weight=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 10**6),
)
def test_value_and_gradient_equal_the_formula(
    objective, formula, samples, exits, classes, gate, weight, seed
):
    outputs = make(samples, exits, classes, gate=gate, weight=weight, seed=seed)
    assert_equals_formula(objective, formula, outputs, rtol=1e-9, atol=1e-12)


EDGES = {
    "one exit": make(5, 1),
    "one sample": make(1, 3),
    "two classes": make(5, 2, 2),
    "weight 0": make(5, 3, weight=0.0),
    "weight 1": make(5, 3, weight=1.0),
    "all cost more than the plain model": make(5, 2, costs=[1.1, 1.7, 2.5]),
    "gates all but shut or open": make(5, 3, gate=40.0),
    "one exit, all but shut or open": make(4, 1, 2, gate=40.0),
}


@every_objective
@pytest.mark.parametrize("edge", EDGES)
def test_value_and_gradient_equal_the_formula_at_the_edges(objective, formula, edge):
    assert_equals_formula(objective, formula, EDGES[edge], rtol=1e-9, atol=1e-12)


@every_objective
@pytest.mark.parametrize("spread", [2.0, 40.0], ids=["plain logits", "sure logits"])
def test_single_precision_is_exact_where_gates_saturate(objective, formula, spread):
    outputs = cast(make(6, 3, 2, gate=100.0, spread=spread), torch.float32)
    outputs = cast(outputs, torch.float64)
    assert_equals_formula(objective, formula, outputs, torch.float32, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [objective for objective, _ in CASES], ids=repr)
def test_only_gates_that_are_used_are_read(objective):
    outputs = make(4, 2)
    unread = replace(outputs, gate_logits=torch.full_like(outputs.gate_logits, math.nan))
    reads = bool(objective(unread).isnan())
    assert reads == ("gates" in objective.uses and objective != EENets(version=0))


def test_the_rare_kind_of_sample_weighs_half_in_the_balanced_loss():
    # One sample of four is best served by the exit, for there alone its class is likely.
    sure, wrong = [9.0, 0.0], [0.0, 9.0]
    at_exit, final = torch.tensor([sure, wrong, wrong, wrong]), torch.tensor([wrong] + [sure] * 3)
    gate_logits = torch.tensor([[-2.0], [1.0], [1.0], [1.0]])
    labels, costs = torch.zeros(4, dtype=torch.int64), torch.tensor([0.5, 1.0])
    outputs = BatchOutputs((at_exit, final), gate_logits, labels, costs, 0.0)
    leave, stay = math.log(1 + math.exp(2)), math.log(1 + math.exp(1))
    expected = (leave + stay) / 2 + math.log(1 + math.exp(-9))
    assert float(EENets(version=4)(outputs)) == pytest.approx(expected)


@pytest.mark.parametrize("objective", [EENets(version=4), JEIDNNGates()], ids=repr)
def test_of_equally_good_outlets_the_earliest_should_be_left_at(objective):
    logits, gate_logits = torch.zeros(2, 3), torch.zeros(2, 2, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.int64)
    objective(BatchOutputs((logits,) * 3, gate_logits, labels, torch.ones(3), 1.0)).backward()
    assert bool((gate_logits.grad[:, 0] < 0).all())


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_leenet_is_linear_in_alpha(alpha, seed):
    outputs = make(3, 2, seed=seed)
    at = [LEENet()(replace(outputs, weight=weight)) for weight in (0.0, 1.0, alpha)]
    torch.testing.assert_close(at[2], (1 - alpha) * at[0] + alpha * at[1])


SOFT = [LEENet(), DifferentiableBranching(), EENets(version=1), JEIDNNHeads()]


@pytest.mark.parametrize("objective", SOFT, ids=repr)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_all_gates_shut_leave_the_cross_entropy_of_the_final_classifier(objective, exits, seed):
    outputs = cast(make(3, exits, weight=0.0, seed=seed), torch.float32)
    shut = replace(outputs, gate_logits=torch.full_like(outputs.gate_logits, -100.0))
    torch.testing.assert_close(objective(shut), FinalClassifier()(outputs))


@pytest.mark.parametrize("objective", SOFT, ids=repr)
@given(st.integers(1, 4), st.integers(0, 10**6))
def test_an_open_first_gate_leaves_the_cross_entropy_of_the_first_exit(objective, exits, seed):
    outputs = cast(make(3, exits, weight=0.0, seed=seed), torch.float32)
    gate_logits = outputs.gate_logits.clone()
    gate_logits[:, 0] = 100.0
    torch.testing.assert_close(
        objective(replace(outputs, gate_logits=gate_logits)), outputs.losses[:, 0].mean()
    )


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=6), st.integers(0, 10**6))
def test_mixtures_are_distributions_and_their_costs_lie_between_the_costs(gate_logits, seed):
    outputs = make(1, len(gate_logits), seed=seed)
    gate_logits = torch.tensor([gate_logits], dtype=torch.float64)
    mixtures = mixture_log_probabilities(outputs.logits, gate_logits)
    assert mixtures.shape == (1, gate_logits.shape[1] + 1, 3)
    torch.testing.assert_close(mixtures.logsumexp(2), torch.zeros_like(mixtures[:, :, 0]))
    costs = mixture_costs(gate_logits, outputs.costs)[0]
    for i, cost in enumerate(costs):
        later = outputs.costs[i:]
        assert later.min() - 1e-12 <= cost <= later.max() + 1e-12
    # What leaves where, and what it cost there, must tell the same.
    expected = (exit_log_probabilities(gate_logits).exp() * outputs.costs).sum()
    torch.testing.assert_close(costs[0], expected)


def test_a_mixture_keeps_what_a_shut_gate_lets_through():
    # p₀[y] is e^−200 and the gate passes e^−100, so almost all of Ŷ₀[y] is the final classifier's.
    outputs = BatchOutputs(
        (torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]])),
        torch.tensor([[100.0]], requires_grad=True),
        torch.tensor([0]),
        torch.tensor([0.5, 1.1]),
        0.0,
    )
    loss = DifferentiableBranching()(outputs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(100)
    assert float(outputs.gate_logits.grad) == pytest.approx(1)


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=6))
def test_exit_probabilities_add_up_to_one(logits):
    log_q = exit_log_probabilities(torch.tensor([logits], dtype=torch.float64))
    assert torch.allclose(log_q.logsumexp(1), torch.zeros(1, dtype=torch.float64), atol=1e-9)


def test_saturated_gates_stay_finite_and_exact():
    log_q = exit_log_probabilities(torch.tensor([[-1e4, 1e4, 0.0]]))
    assert log_q[0].tolist() == pytest.approx([-1e4, 0.0, -1e4 - math.log(2), -1e4 - math.log(2)])


def test_losses_of_hopeless_logits_stay_finite():
    logits = [torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]])]
    losses = exit_losses(logits, torch.tensor([1]))
    assert losses[0].tolist() == pytest.approx([2e4, math.log(2)])


def test_the_fitted_temperature_undoes_a_scale_and_has_the_least_cross_entropy():
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    fitted = fit_temperature(logits, labels)
    assert fit_temperature(5 * logits, labels) == pytest.approx(5 * fitted, rel=1e-5)

    def loss(temperature):
        return float(exit_losses([logits.double() / temperature], labels).mean())

    assert loss(fitted) < min(loss(fitted * 0.99), loss(fitted * 1.01))


def test_a_network_without_exits_trains_its_final_classifier():
    outputs = make(4, 0)
    torch.testing.assert_close(
        FinalClassifier()(outputs), exit_losses(outputs.logits, outputs.labels).mean()
    )


def test_exits_train_without_the_final_classifier():
    outputs = make(4, 2)
    without = replace(outputs, logits=outputs.logits[:-1])
    torch.testing.assert_close(SumOfExits()(without), SumOfExits()(outputs))


ADDITIVE = [LEENet(), DifferentiableBranching(), EENets(1), EENets(2), PTEEnet(), JEIDNNGates()]


@pytest.mark.parametrize("objective", ADDITIVE, ids=repr)
def test_each_sample_may_have_a_weight_of_its_own(objective):
    outputs = make(3, 2)  # as many samples as outlets, so that the wrong axis would fit too
    weights = [0.0, 0.3, 1.0]
    alone = [
        replace(
            outputs,
            logits=tuple(at[b : b + 1] for at in outputs.logits),
            gate_logits=outputs.gate_logits[b : b + 1],
            labels=outputs.labels[b : b + 1],
            weight=weight,
        )
        for b, weight in enumerate(weights)
    ]
    together = replace(outputs, weight=torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(objective(together), average([objective(one) for one in alone]))


def test_a_sum_of_objectives_adds_them_up():
    outputs = make(4, 2)
    parts = (Distillation(), FinalClassifier())
    expected = parts[0](outputs) + parts[1](outputs)
    torch.testing.assert_close(SumOfObjectives(parts)(outputs), expected)


def test_objectives_are_found_by_name():
    assert set(PUBLISHED) <= set(list_objectives())
    for name, objective in PUBLISHED.items():
        assert get_objective(name) is objective
        assert objective.name == name
    with pytest.raises(UnknownNameError, match="'leenet'"):
        get_objective("leanet")


def test_objectives_are_values():
    assert BranchyNet(weights=[1, 0.5]) == BranchyNet(weights=(1, 0.5))
    assert len({BranchyNet(weights=[1, 0.5]), BranchyNet(weights=(1, 0.5)), EENets(), PABEE()}) == 3
    with pytest.raises(FrozenInstanceError):
        EENets().version = 2


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (BranchyNet, {"weights": (1.0, -1.0)}, r"'weights'.*got \(1.0, -1.0\)"),
        (BranchyNet, {"weights": (1.0, math.nan)}, "'weights'.*nan"),
        (BranchyNet, {"weights": 0.3}, "'weights'.*got 0.3"),
        (BranchyNet, {"weights": "11"}, "'weights'.*got '11'"),
        (EENets, {"version": 5}, "'version'.*0 to 4.*got 5"),
        (EENets, {"version": -1}, "'version'.*got -1"),
        (EENets, {"version": True}, "'version'.*got True"),
        (EENets, {"version": 1.0}, "'version'.*got 1.0"),
        (Distillation, {"mix": 1.01}, "'mix'.*got 1.01"),
        (Distillation, {"mix": "half"}, "'mix'.*got 'half'"),
        (Distillation, {"temperature": 0.0}, "'temperature'.*> 0.*got 0.0"),
        (Distillation, {"temperature": math.inf}, "'temperature'.*got inf"),
        (SumOfObjectives, {"objectives": ()}, r"'objectives'.*got \(\)"),
        (SumOfObjectives, {"objectives": ("final",)}, "'objectives'.*got .*'final'"),
    ],
)
def test_bad_options_are_refused(objective, options, message):
    with pytest.raises(InputError, match=message):
        objective(**options)


@pytest.mark.parametrize("weights", [(), (1.0, 1.0), (1.0,) * 4])
def test_branchynet_wants_a_weight_for_each_outlet(weights):
    with pytest.raises(InputError, match=f"{len(weights)} weights, but .* 3 outlets"):
        BranchyNet(weights=weights)(make(4, 2))


def test_branchynet_weights_each_outlet_by_its_own():
    outputs = make(4, 2)
    expected = 0.2 * outputs.losses[:, 0].mean() + 3 * outputs.losses[:, 2].mean()
    torch.testing.assert_close(BranchyNet(weights=(0.2, 0, 3))(outputs), expected)
