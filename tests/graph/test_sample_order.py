"""Detection of operators that mix or reorder the samples of a batch."""

import operator

import pytest
import torch
from torch import fx, nn

from leenet_fx.graph.node_costs import measure
from leenet_fx.graph.operator_costs import Operation
from leenet_fx.graph.sample_order import find_batch_dims, mixing_positions


def batch_dims_of(function, shape=(4, 6)):
    graph = fx.symbolic_trace(function).graph
    costs = measure(graph, nn.Module(), shape, torch.float32)
    batch_dims = find_batch_dims(graph, costs)
    nodes = list(graph.nodes)
    mixing = [node.name for node in batch_dims.mixing if node.op != "output"]
    return batch_dims.by_node[nodes[-2]], mixing


@pytest.mark.parametrize(
    ("function", "axis", "per_sample"),
    [
        (lambda x: x.flatten(0, 1), 0, 4),
        (lambda x: x.flatten(0, 1).relu() * 2, 0, 4),
        (lambda x: torch.softmax(x.flatten(0, 1), 1), 0, 4),
        (lambda x: x.flatten(0, 1).reshape(x.shape[0], 4, 6), 0, 1),
        (lambda x: x.transpose(0, 1), 1, 1),
        (lambda x: x.repeat_interleave(3, 0), 0, 3),
    ],
)
def test_operators_that_keep_the_order_of_samples(function, axis, per_sample):
    batch_dim, mixing = batch_dims_of(function)
    assert (batch_dim.kind, batch_dim.axis, batch_dim.per_sample) == ("samples", axis, per_sample)
    assert mixing == []


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.cat([x, x]), "cat"),
        (lambda x: x.transpose(0, 1).reshape(x.shape[0], -1), "reshape"),
        (lambda x: torch.sort(x.flatten(0, 1), 0)[0], "sort"),
    ],
)
def test_operators_that_may_reorder_samples(function, name):
    batch_dim, mixing = batch_dims_of(function)
    assert not batch_dim.usable
    assert mixing == [name]


def test_values_computed_from_reordered_samples_are_unusable():
    batch_dim, mixing = batch_dims_of(lambda x: torch.cat([x, x]).relu() + 1)
    assert not batch_dim.usable
    assert mixing == ["cat"]


@pytest.mark.parametrize(
    ("function", "name"), [(lambda x: x - x.mean(0), "mean"), (lambda x: x + x[:1], "getitem")]
)
def test_operators_with_a_result_independent_of_the_batch_size_mix_samples(function, name):
    assert batch_dims_of(function)[1] == [name]


def test_batch_statistics_mix_samples():
    def normalise(x):
        return torch.nn.functional.batch_norm(x, None, None, training=True)

    assert batch_dims_of(normalise)[1] == ["batch_norm"]


def test_runs_of_different_operators_are_not_compared():
    same = Operation("mean", (1,))
    assert mixing_positions([same], [same]) == [0]
    assert mixing_positions([same], [Operation("sum", (1,))]) == []
    assert mixing_positions([same], [same, same]) == []


def test_the_batch_size_is_a_size():
    batch_dim, mixing = batch_dims_of(lambda x: operator.mul(x.shape[0], 5))
    assert batch_dim.kind == "size"
    assert mixing == []
