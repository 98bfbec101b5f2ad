"""Costs of nodes and operators on meta tensors."""

import pytest
import torch
from torch import fx, nn

from leenet_fx.graph.node_costs import measure
from leenet_fx.graph.operator_costs import Operations, measure_call


def test_cumulative_costs_of_nodes():
    def function(x):
        y = torch.bmm(x, x.transpose(1, 2))
        return y.relu_().flatten(1) + 1

    graph = fx.symbolic_trace(function).graph
    costs = measure(graph, nn.Module(), (3, 5), torch.float32)
    product, total = 2 * 3 * 5 * 3, 4 * 9
    assert costs.flops == [0, 0, product, product, product, product, product]
    assert costs.bytes == [0, 0, total, total, total, 2 * total, 2 * total]
    nodes = {node.name: node for node in graph.nodes}
    assert costs.shape(nodes["bmm"]) == (1, 3, 3)
    assert costs.large_shapes[nodes["bmm"]] == ("tensor", (3, 3, 3))
    assert costs.written[nodes["bmm"]] == [costs.order[nodes["relu_"]]]
    assert costs.written[nodes["bmm"]] is costs.written[nodes["flatten"]]
    assert costs.written[nodes["add"]] == []


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_dropout_overwrites_its_input_in_training_mode_only(inplace):
    model = nn.Sequential(nn.ReLU(), nn.Dropout(0.5, inplace=inplace)).eval()
    graph = fx.symbolic_trace(model).graph
    costs = measure(graph, model, (4,), torch.float32)
    relu = list(graph.nodes)[1]
    assert costs.written[relu] == ([2] if inplace else [])


@pytest.mark.parametrize(
    ("call", "created"),
    [
        (lambda x: x.view(-1), 0),
        (lambda x: x.t().unsqueeze(0), 0),
        (lambda x: x.add_(1), 0),
        (lambda x: x + 1, 24),
        (lambda x: x.t().reshape(-1), 48),
        (lambda x: torch.stack(x.unbind(0)), 24),
    ],
)
def test_views_and_in_place_results_create_no_bytes(call, created):
    assert measure_call(call, torch.empty(2, 3, device="meta"))[1:] == (0, created)


IMAGES = torch.empty(2, 4, 6, 6, device="meta")
CHANNELS_LAST = IMAGES.to(memory_format=torch.channels_last)
HALF = IMAGES.half()
SCALE = torch.empty(2, 4, 1, 1, device="meta")
VECTOR = torch.empty(6, device="meta")
COUNTS = torch.empty(2, 3, dtype=torch.int64, device="meta")


@pytest.mark.parametrize("x", [IMAGES, CHANNELS_LAST, HALF, COUNTS, IMAGES.transpose(2, 3)])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + x,
        lambda x: x * 2.5,
        lambda x: x - 1,
        lambda x: x * 1j if x.dtype == torch.float32 else x,
        lambda x: 1 - x,
        lambda x: torch.add(x, x, alpha=2),
        lambda x: x * SCALE if x.ndim == 4 else x,
        lambda x: SCALE * x if x.ndim == 4 else x,
        lambda x: x + VECTOR if x.ndim == 4 else x,
        lambda x: x + x.float(),
        lambda x: x + x.contiguous(),
        lambda x: x.unsqueeze(0) + x,
        lambda x: x.relu(),
        lambda x: x.clone().relu_(),
        lambda x: x.expand(3, *x.shape).relu(),
        lambda x: torch.nn.functional.silu(x) if x.is_floating_point() else x,
        lambda x: torch.nn.functional.hardswish(x) if x.is_floating_point() else x,
        lambda x: torch.nn.functional.hardtanh_(x.clone()) if x.is_floating_point() else x,
        lambda x: torch.nn.functional.gelu(x) if x.is_floating_point() else x,
        lambda x: x.log_softmax(1) if x.is_floating_point() else x,
        lambda x: x.log_softmax(1, dtype=torch.float32),
    ],
)
def test_results_have_the_shapes_dtypes_and_strides_of_torch(call, x):
    expected, (result, _, _) = call(x), measure_call(call, x)
    assert result.is_meta
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert result.stride() == expected.stride()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RuntimeError, match=r"must match the size|[Ss]hape mismatch|broadcast"):
        measure_call(lambda x: x + x[:, :3], IMAGES)


def test_operators_on_constants_are_not_logged():
    operations = Operations()
    x, y = torch.empty(2, 3), torch.empty(3)
    with operations.record():
        z = (operations.mark_images(x) + y.neg()).relu_()
        z.new_zeros(4)
    assert [(entry.name, entry.shape) for entry in operations.log] == [
        ("add", (2, 3)),
        ("relu", (2, 3)),
    ]
