"""Private parts of torch, and the fallbacks where torch does not have them."""

import pytest
import torch
from torch import fx, nn
from torch.utils import flop_counter

from leenet_fx.graph import compat
from leenet_fx.graph.operator_costs import measure_call


class Recorder(nn.Module):
    """Records whether torch.fx is tracing."""

    def forward(self, x):
        self.tracing = compat.is_symbolic_tracing()
        return x


@pytest.mark.parametrize("private", [True, False])
def test_symbolic_tracing_is_detected(private, monkeypatch):
    if not private:
        monkeypatch.delattr(fx._symbolic_trace, "is_fx_symbolic_tracing")
    assert not compat.is_symbolic_tracing()
    module = nn.Sequential(Recorder())

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return False

    Tracer().trace(module)
    assert module[0].tracing
    module(torch.zeros(1))
    assert not module[0].tracing
    assert not compat.is_symbolic_tracing()


def test_operator_overloads_are_recognised():
    assert compat.is_operator_overload(torch.ops.aten.relu.default)
    assert not compat.is_operator_overload(torch.ops.aten.relu)
    assert not compat.is_operator_overload(torch.relu)


@pytest.mark.parametrize("private", [True, False])
def test_a_dynamic_axis_leaves_the_tensor_usable(private, monkeypatch):
    if not private:
        monkeypatch.delattr(torch._dynamo, "maybe_mark_dynamic")
    tensor = torch.zeros(3, 2)
    compat.mark_dynamic_axis(tensor, 0)
    assert torch.equal(tensor, torch.zeros(3, 2))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_a_module_are_found(register):
    module = nn.Sequential(nn.ReLU())
    assert not compat.has_hooks(module)
    handle = getattr(module[0], register)(lambda *arguments: None)
    assert not compat.has_hooks(module)
    assert compat.has_hooks(module[0])
    pre_hooks, hooks = compat.forward_hooks(module[0])
    assert [len(pre_hooks), len(hooks)] == [int("pre" in register), int("pre" not in register)]
    handle.remove()
    assert not compat.has_hooks(module[0])


@pytest.mark.parametrize("name", ["_forward_hooks", "_forward_pre_hooks"])
def test_hooks_cannot_be_excluded_without_access_to_them(name):
    module = nn.ReLU()
    del module.__dict__[name]
    assert compat.has_hooks(module)
    assert [len(hooks) for hooks in compat.forward_hooks(module)] == [0, 0]


@pytest.mark.parametrize("kind", ["", "_pre"])
def test_global_hooks_are_found(kind):
    assert not compat.has_global_hooks()
    register = getattr(nn.modules.module, f"register_module_forward{kind}_hook")
    handle = register(lambda *arguments: None)
    try:
        assert compat.has_global_hooks()
    finally:
        handle.remove()
    assert not compat.has_global_hooks()


@pytest.mark.parametrize("name", ["_global_forward_hooks", "_global_forward_pre_hooks"])
def test_global_hooks_cannot_be_excluded_without_access_to_them(name, monkeypatch):
    monkeypatch.delattr(nn.modules.module, name)
    assert compat.has_global_hooks()


def test_operators_are_looked_up_by_name():
    assert compat.aten_operator("mm") is torch.ops.aten.mm
    assert compat.aten_operator("mm.default") is torch.ops.aten.mm.default
    assert compat.aten_operator("no_such_operator.default") is None


@pytest.fixture
def _without_dispatch_mode(monkeypatch):
    compat._dispatch_mode_class.cache_clear()
    monkeypatch.delattr(torch.utils._python_dispatch, "TorchDispatchMode")
    yield
    compat._dispatch_mode_class.cache_clear()


def costs_of_a_linear_layer():
    layer = nn.Linear(4, 3, device="meta")
    _, flops, size = measure_call(layer, torch.empty(2, 4, device="meta"))
    return flops, size


def test_operators_are_dispatched_to_a_handler():
    assert costs_of_a_linear_layer() == (2 * 2 * 4 * 3, 4 * 2 * 3)


@pytest.mark.usefixtures("_without_dispatch_mode")
def test_operators_are_dispatched_to_a_handler_by_the_public_name():
    assert costs_of_a_linear_layer() == (2 * 2 * 4 * 3, 4 * 2 * 3)


@pytest.mark.usefixtures("_without_dispatch_mode")
def test_a_missing_dispatch_mode_is_an_error(monkeypatch):
    monkeypatch.delattr(flop_counter, "TorchDispatchMode")
    with pytest.raises(RuntimeError, match="no TorchDispatchMode"):
        costs_of_a_linear_layer()
