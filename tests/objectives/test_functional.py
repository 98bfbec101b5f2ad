"""Exit probabilities and mixtures in log space."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_helpers import make

from leenet_fx.objectives import (
    BatchOutputs,
    DifferentiableBranching,
    exit_log_probabilities,
    exit_losses,
    mixture_costs,
    mixture_log_probabilities,
)


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=6), st.integers(0, 10**6))
def test_mixtures_are_distributions_and_their_costs_are_within_the_range_of_costs(
    gate_logits, seed
):
    outputs = make(1, len(gate_logits), seed=seed)
    gate_logits = torch.tensor([gate_logits], dtype=torch.float64)
    mixtures = mixture_log_probabilities(outputs.logits, gate_logits)
    assert mixtures.shape == (1, gate_logits.shape[1] + 1, 3)
    torch.testing.assert_close(mixtures.logsumexp(2), torch.zeros_like(mixtures[:, :, 0]))
    costs = mixture_costs(gate_logits, outputs.costs)[0]
    for i, cost in enumerate(costs):
        later = outputs.costs[i:]
        assert later.min() - 1e-12 <= cost <= later.max() + 1e-12
    # The expectation over exit probabilities is the same.
    expected = (exit_log_probabilities(gate_logits).exp() * outputs.costs).sum()
    torch.testing.assert_close(costs[0], expected)


def test_a_mixture_is_exact_if_its_terms_underflow():
    # p₀[y] is e^−200 and 1−g is e^−100, so nearly all of Ŷ₀[y] is from the final classifier.
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
def test_exit_probabilities_sum_to_one(logits):
    log_q = exit_log_probabilities(torch.tensor([logits], dtype=torch.float64))
    assert torch.allclose(log_q.logsumexp(1), torch.zeros(1, dtype=torch.float64), atol=1e-9)


def test_exit_probabilities_of_saturated_gates_are_finite_and_exact():
    log_q = exit_log_probabilities(torch.tensor([[-1e4, 1e4, 0.0]]))
    assert log_q[0].tolist() == pytest.approx([-1e4, 0.0, -1e4 - math.log(2), -1e4 - math.log(2)])


def test_losses_of_extreme_logits_are_finite():
    logits = [torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]])]
    losses = exit_losses(logits, torch.tensor([1]))
    assert losses[0].tolist() == pytest.approx([2e4, math.log(2)])
