"""Stages: parts of the backbone as generated code."""

import copy

import torch
from networks import close, images, tiny
from torch import fx

import leenet_fx
from leenet_fx.runtime.stages import make_function, split_backbone


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


def test_stages_follow_a_module_that_is_replaced():
    ee = attached()
    x = images(3, 3, 16, 16)
    ee(x)
    new = copy.deepcopy(ee.blocks[1].conv1)
    with torch.no_grad():
        new.weight.mul_(-1)
    ee.blocks[1].conv1 = new
    expected = tiny()
    expected.blocks[1].conv1 = new
    with torch.no_grad():
        assert close(ee(x), expected(x), 1e-5)


def test_generated_code_reads_modules_from_their_dictionaries():
    ee = attached()
    calls = 0
    for stage in ee.conditional_stages:
        modules = [node for node in stage.graph.nodes if node.op == "call_module"]
        assert stage.code.count("._modules[") == sum(
            str(node.target).count(".") + 1 for node in modules
        )
        calls += len(modules)
    assert calls == sum(not list(part.children()) for part in tiny().modules()) + 4
    branch = ee.controller(leenet_fx.GateThreshold(0.0)).fused_stages[0].fused
    names = branch.__code__.co_names
    assert "_modules" in names
    assert not {"stem", "blocks", "exits"} & set(names)


def test_a_graph_keeps_its_own_code_transformers():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("layer", (x,)))
    graph.on_generate_code(lambda _: lambda lines: [*lines, "# end\n"])
    code, function = make_function(graph)
    assert "self._modules['layer'](x)" in code
    assert code.rstrip().endswith("# end")
    assert "self.layer(x)" in graph.python_code("self").src
    network = torch.nn.ModuleDict({"layer": torch.nn.ReLU()})
    assert torch.equal(function(network, torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_a_backbone_without_exits_is_split_at_any_node():
    layers = [
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(784, 2),
    ]
    traced = fx.symbolic_trace(torch.nn.Sequential(*layers))
    nodes = list(traced.graph.nodes)
    first, last = split_backbone(traced.graph, [2], [[nodes[2]]], nodes[-2])
    x = images(2, 3, 16, 16)
    (hidden,) = first.run(traced, x)
    assert hidden.shape == (2, 4, 14, 14)
    assert torch.equal(last.run(traced, hidden), traced(x))
