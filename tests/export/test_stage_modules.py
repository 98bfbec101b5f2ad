"""Stages as modules on flat lists of tensors, composed by the rules for formats."""

import pytest
import torch
from export_helpers import small
from networks import images, tiny
from torch import nn

import leenet_fx
from leenet_fx import (
    ClassMeanDistance,
    Entropy,
    ExportError,
    GateThreshold,
    Margin,
    MaxProbability,
    ModeError,
    Patience,
    Policy,
    Vote,
)
from leenet_fx.export.stage_modules import export_plan
from leenet_fx.export.verify import thresholds_for
from leenet_fx.policies import AlphaConditionedGate, CumulativeGate


class Cut(nn.Module):
    """Passes on tokens, windows of them (four a sample), a sequence with the batch second, a tuple
    of halves, and a table that is the same for every batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = self.linear(x)
        windows = x.reshape(x.shape[0] * 4, 4, 6)
        return x.sigmoid(), windows.tanh(), x.transpose(0, 1).relu(), x.chunk(2, 2), self.table * 2


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, values):
        x, windows, sequence, halves, table = values
        windows = self.linear(windows) + table
        return x * table, windows, sequence * 2, (halves[0] + 1, halves[1]), table.exp()


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.blocks = nn.Sequential(Cut(), Mix())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x, windows, sequence, halves, table = self.blocks(self.embed(x.flatten(2).mT))
        x = x * torch.cat([halves[1], halves[0]], 2) + sequence.transpose(0, 1)
        return self.fc((x + windows.reshape(x.shape) * table).mean(1))


def compose(plan, batch, thresholds, alpha=None):
    """Logits and exits, by the rules in the docstrings of stage_modules and decision."""
    logits, exits = torch.empty(len(batch), 5), torch.full((len(batch),), -1)
    rows, tensors = torch.arange(len(batch)), [batch]
    inputs = [] if alpha is None else [torch.tensor(alpha)]
    for index, stage in enumerate(plan.stages[:-1]):
        found, confidence, *tensors = stage(*tensors, *inputs)
        assert [t.dtype for t in tensors] == [spec.dtype for spec in stage.passed]
        leaves = confidence >= plan.decision.sign * torch.tensor(thresholds[index]).float()
        logits[rows[leaves]], exits[rows[leaves]] = found[leaves], index
        stays = (~leaves).nonzero().flatten()
        tensors = [
            tensor if spec.batch_axis is None else tensor.index_select(spec.batch_axis, stays)
            for tensor, spec in zip(tensors, stage.passed, strict=True)
        ]
        rows = rows[stays]
        if not len(rows):
            return logits, exits
    logits[rows], exits[rows] = plan.stages[-1](*tensors)[0], len(plan.stages) - 1
    return logits, exits


def check(ee, policy, batch):
    ee.policy = policy
    plan = export_plan(ee)
    with torch.no_grad():
        logits, exits = compose(plan, batch, plan.decision.thresholds, plan.decision.alpha)
    expected = ee.predict(batch)
    assert exits.tolist() == expected.exit_index.tolist()
    assert torch.allclose(logits, expected.logits, atol=1e-5)
    return set(exits.tolist())


POLICIES = {
    "max-prob": (MaxProbability([0.25, 0.24]), {}),
    "entropy": (Entropy([1.59, 1.59]), {}),
    "margin": (Margin([0.03, 0.02]), {"head": "cascade"}),
    "patience": (Patience([1, 1]), {}),
    "vote": (Vote([2, 2]), {}),
    "class-mean": (ClassMeanDistance([0.5, 0.4]), {"head": "means"}),
    "gate on features": (GateThreshold([0.0, 0.1]), {"gate": "features"}),
    "gate on history": (GateThreshold([0.0, 0.1]), {"gate": "history", "head": "additive"}),
    "gates that add up": (CumulativeGate([0.5, 0.5]), {"gate": "features"}),
    "alpha": (AlphaConditionedGate(0.3, [0.0, 0.1]), {"gate": "alpha"}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_stages_compose_to_predict_under_every_policy(name):
    policy, options = POLICIES[name]
    ee = small(branch_options=options)
    # Images of many contrasts differ in the classes that exits predict.
    batch = images(16, 3, 16, 16) * torch.linspace(0, 4, 16).view(-1, 1, 1, 1)
    with torch.no_grad():
        for branch in ee.exits.branches():
            for key, value in (*branch.named_parameters(), *branch.named_buffers()):
                if key.startswith("head.") and value.is_floating_point():
                    value.normal_()
            if name == "patience":
                # Both exits predict class 0 for some of the images.
                branch.head.linear.bias[0] += 8
    ee.policy = policy
    counts = (5, 5, 6)
    thresholds = thresholds_for(export_plan(ee), batch, counts)
    if thresholds is not None:
        policy = policy.with_thresholds(thresholds)
    reached = check(ee, policy, batch)
    assert len(reached) > 1


def test_cuts_with_windows_sequences_and_tables_compose():
    torch.manual_seed(0)
    model = Windows().eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 4, 4), blocks=["blocks.*"])
    dims = [dim for cut in ee.spec.cuts for dim in cut.batch_dims]
    found = {(dim.kind, dim.axis, dim.per_sample) for dim in dims}
    assert {("samples", 0, 4), ("samples", 1, 1), ("nested", 0, 1), ("constant", 0, 1)} <= found
    batch = images(9, 3, 4, 4)
    with torch.no_grad():
        logits = ee.all_exits(batch).logits
    middle = [float(z.softmax(1).amax(1).median()) + 1e-4 for z in logits[:-1]]
    assert len(check(ee, MaxProbability(middle), batch)) > 1
    for stage in export_plan(ee).stages[:-1]:
        assert all(spec.shape.count(None) <= 1 for spec in stage.passed)


def test_a_stage_has_the_weights_that_it_uses_only():
    ee = small()
    ee.policy = MaxProbability(0.5)
    stages = export_plan(ee).stages
    owned = [{id(p) for p in stage.parameters()} for stage in stages]
    assert not owned[0] & owned[1]
    assert set().union(*owned) == {id(p) for p in ee.parameters()}


class CoinFlip(Policy):
    name = "coin"
    reads = "logits"

    def should_exit(self, index, scores):
        return scores[:, 0] > 0

    def confidence(self, index, scores):
        return scores[:, 0]


def test_what_no_format_expresses_is_refused_by_name():
    ee = small()
    with pytest.raises(ModeError, match=r"call ee.eval"):
        export_plan(small().train())
    with pytest.raises(ExportError, match=r"Only float32 networks can be exported, got torch.f"):
        export_plan(small().half())
    with pytest.raises(leenet_fx.InputError, match="needs a network with exits, got TinyNet"):
        export_plan(tiny())
    with pytest.raises(ExportError, match="meta device"):
        export_plan(small().to("meta"))
    ee.policy = CoinFlip()
    with pytest.raises(ExportError, match=r"CoinFlip.*does not compare a confidence with one"):
        export_plan(ee)
