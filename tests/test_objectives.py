"""The gate loss against a plain double loop, and at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leenet_fx import exit_log_probabilities, exit_losses, leenet_loss


def double_loop(losses, gates, costs, alpha):
    """L = (1−α) · mean Σ qᵢ·CEᵢ + α · mean Σ qᵢ·cᵢ, sample by sample and exit by exit."""
    error = cost = torch.zeros((), dtype=losses.dtype)
    samples, outlets = losses.shape
    for b in range(samples):
        inside = torch.ones((), dtype=losses.dtype)
        for i in range(outlets):
            gate = torch.sigmoid(gates[b, i]) if i < outlets - 1 else torch.ones(())
            q = gate * inside
            inside = inside * (1 - gate)
            error = error + q * losses[b, i]
            cost = cost + q * costs[i]
    return (1 - alpha) * error / samples + alpha * cost / samples


@settings(deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(0.1, 8),
    st.integers(0, 10**6),
)
def test_value_and_gradient_equal_a_double_loop(samples, exits, alpha, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    gates = spread * torch.randn(samples, exits, generator=generator, dtype=torch.float64)
    losses = torch.rand(samples, exits + 1, generator=generator, dtype=torch.float64) * 5
    costs = torch.rand(exits + 1, generator=generator, dtype=torch.float64) * 1.2
    grads = []
    values = []
    for loss in (leenet_loss, double_loop):
        z = gates.clone().requires_grad_()
        value = loss(losses, z, costs, alpha)
        value.backward()
        values.append(value.detach())
        grads.append(z.grad)
    assert torch.allclose(values[0], values[1], rtol=1e-10, atol=1e-12)
    assert torch.allclose(grads[0], grads[1], rtol=1e-8, atol=1e-12)


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=6))
def test_exit_probabilities_add_up_to_one(logits):
    log_q = exit_log_probabilities(torch.tensor([logits], dtype=torch.float64))
    assert torch.allclose(log_q.logsumexp(1), torch.zeros(1, dtype=torch.float64), atol=1e-9)


def test_saturated_gates_stay_finite_and_exact():
    log_q = exit_log_probabilities(torch.tensor([[-1e4, 1e4, 0.0]]))
    assert log_q[0].tolist() == pytest.approx([-1e4, 0.0, -1e4 - math.log(2), -1e4 - math.log(2)])
    gates = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    losses, costs = torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([0.2, 0.6, 1.1])
    value = leenet_loss(losses, gates, costs, 0.5)
    value.backward()
    assert float(value.detach()) == pytest.approx(0.5 * ((1 + 3) / 2) + 0.5 * ((0.6 + 0.2) / 2))
    assert bool(gates.grad.isfinite().all())


def test_alpha_0_counts_error_only_and_alpha_1_cost_only():
    gates = torch.tensor([[0.0, 0.0]])
    losses, costs = torch.tensor([[4.0, 2.0, 1.0]]), torch.tensor([0.2, 0.5, 1.1])
    assert float(leenet_loss(losses, gates, costs, 0)) == pytest.approx(2 + 0.5 + 0.25)
    assert float(leenet_loss(losses, gates, costs, 1)) == pytest.approx(0.1 + 0.125 + 0.275)


def test_losses_of_hopeless_logits_stay_finite():
    logits = [torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 0.0]])]
    losses = exit_losses(logits, torch.tensor([1]))
    assert losses[0].tolist() == pytest.approx([2e4, math.log(2)])
