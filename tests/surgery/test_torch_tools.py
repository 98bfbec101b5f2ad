"""torch's own tools, which make one program of a network with exits or run its graph."""

import copy
import io
import warnings

import pytest
import torch
from helpers import attached
from networks import images
from torch import fx

import leenet_fx
from leenet_fx.policies import GateThreshold, MaxProbability, NeverExit, Patience

X = images(4, 3, 16, 16)


def exported(ee, **options):
    return torch.export.export(ee, (X,), **options).module()


def traced(ee):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(ee, (X,))


def onnx_graph(ee, dynamo):
    from onnx.reference import ReferenceEvaluator

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(ee, (X,), dynamo=True, verbose=False)
            model = program.model_proto
        else:
            import onnx

            torch.onnx.export(ee, (X,), file, dynamo=False)
            model = onnx.load_from_string(file.getvalue())
    session = ReferenceEvaluator(model)
    name = session.input_names[0]
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


TOOLS = {
    "torch.export.export": exported,
    "torch.export.export, strict": lambda ee: exported(ee, strict=True),
    "torch.jit.trace": traced,
    "torch.onnx.export": lambda ee: onnx_graph(ee, dynamo=True),
    "torch.onnx.export, by tracing": lambda ee: onnx_graph(ee, dynamo=False),
    "fx.Interpreter": lambda ee: fx.Interpreter(ee).run,
    "fx.symbolic_trace": fx.symbolic_trace,
    "fx.GraphModule": lambda ee: fx.GraphModule(ee, ee.graph),
    "fx.Transformer": lambda ee: fx.Transformer(ee).transform(),
}


def compiling_counts_as_exporting():
    """torch 2.11 does not tell torch.compile from an export, which is refused."""

    @torch.compile(backend="eager")
    def is_exporting(x):
        return x, torch.compiler.is_exporting()

    return is_exporting(torch.ones(1))[1]


def messages(error):
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_gets_the_backbone_or_an_error(tool):
    ee = attached().eval()
    with torch.no_grad():
        backbone = ee(X)
        assert torch.allclose(TOOLS[tool](ee)(X), backbone, atol=1e-5)
        for policy in (GateThreshold(0.0), MaxProbability(0.9), Patience(1)):
            ee.policy = policy
            # Tools wrap the error in their own.
            with pytest.raises(Exception, match=r"(?s).") as caught:
                TOOLS[tool](ee)(X)
            assert any("leenet_fx.export" in message for message in messages(caught.value))
        ee.policy = NeverExit()
        assert torch.equal(ee(X), backbone)


def test_disabling_every_exit_by_its_threshold_is_not_disabling_early_exits():
    ee = attached().eval()
    ee.policy = MaxProbability(float("inf"))
    with pytest.raises(leenet_fx.ModeError, match=r"NeverExit\(\)"):
        fx.Interpreter(ee).run(X)


def test_training_mode_gives_every_exit_to_tools_too():
    ee = attached().train()
    outputs = copy.deepcopy(ee)(X)
    for run in (exported(copy.deepcopy(ee)), fx.Interpreter(copy.deepcopy(ee)).run):
        found = run(X)
        assert torch.allclose(torch.stack(found.logits), torch.stack(outputs.logits), atol=1e-5)
        assert torch.allclose(found.gate_logits, outputs.gate_logits, atol=1e-5)


def test_every_exit_can_be_exported_explicitly():
    class AllExits(torch.nn.Module):
        def __init__(self, ee):
            super().__init__()
            self.ee = ee

        def forward(self, x):
            return self.ee.all_exits(x).logits

    ee = attached().eval()
    ee.policy = MaxProbability(0.5)
    found = torch.export.export(AllExits(ee), (X,)).module()(X)
    assert torch.allclose(torch.stack(found), torch.stack(ee.all_exits(X).logits), atol=1e-5)


def test_torch_compile_exits_early_as_the_network_does():
    ee = attached().eval()
    confidence = ee.all_exits(X).logits[0].detach().softmax(1).amax(1)
    ee.policy = MaxProbability([float(confidence.median()), 2.0, 0.3, 2.0])
    for network in (ee, attached().eval()):
        compiled = torch.compile(network, backend="eager")
        with torch.inference_mode():
            if network is ee and compiling_counts_as_exporting():
                with pytest.raises(leenet_fx.ModeError, match="Early exits are enabled"):
                    compiled(X)
                continue
            assert torch.allclose(compiled(X), network(X), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*deprecated")
def test_torch_jit_script_is_refused():
    with pytest.raises(leenet_fx.ModeError, match=r"torch\.jit\.script.*leenet_fx\.export"):
        torch.jit.script(attached().eval())
