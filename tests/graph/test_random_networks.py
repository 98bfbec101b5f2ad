"""Networks drawn at random: whatever crosses a cut, samples get what they would have got."""

import copy
import pickle

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import close, images, oracle
from torch import nn

import leenet_fx

SIZE = 8
KINDS = (
    *("residual", "in place", "dense", "branching", "by batch size", "windows", "tokens"),
    *("keeps", "keeps folded", "uses", "takes part"),
)


class Block(nn.Module):
    """(features, something kept) → the same; what it does in between goes by its kind."""

    def __init__(self, kind, width, dropout):
        super().__init__()
        self.kind = kind
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.slim = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.line = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, kept, rows):
        way = getattr(self, "_" + self.kind.replace(" ", "_"))
        return way(self.drop(x), kept, rows)

    def _residual(self, x, kept, rows):
        return self.act(x + self.two(self.act(self.norm(self.one(x))))), kept

    def _in_place(self, x, kept, rows):
        y = self.two(self.one(x).relu_())
        y += x
        y *= 0.5
        return y, kept

    def _dense(self, x, kept, rows):
        return self.join(torch.cat([x, self.two(self.act(self.one(x)))], 1)), kept

    def _branching(self, x, kept, rows):
        return self.norm(self.one(x) + self.two(x)), kept

    def _by_batch_size(self, x, kept, rows):
        _, channels, height, width = x.shape
        y = x.reshape(rows * 2, channels // 2, height, width)
        y = self.slim(y).view(rows, channels, height, width)
        return x + self.one(y), kept

    def _windows(self, x, kept, rows):
        batch, channels, height, width = x.shape
        y = x.view(batch, channels, height // 2, 2, width // 2, 2)
        y = y.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, channels)
        y = self.line(y.softmax(1))
        y = y.view(batch, height // 2, width // 2, 2, 2, channels)
        return x + y.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width), kept

    def _tokens(self, x, kept, rows):
        y = self.line(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.one(y.reshape(x.shape)), kept

    def _keeps(self, x, kept, rows):
        return self.two(self.one(x)), x

    def _keeps_folded(self, x, kept, rows):
        return self.two(self.one(x)), x.flatten(0, 1)

    def _uses(self, x, kept, rows):
        x = self.two(self.one(x))
        return (x if kept is None else x + kept.view(x.shape)), None

    def _takes_part(self, x, kept, rows):
        one, two = self.join(torch.cat([x, x], 1)).chunk(2, 1)
        return self.one(torch.cat([two, one * 2], 1)), kept


class RandomNet(nn.Module):
    def __init__(self, kinds, order, width, dropout, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.order = order
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(kind, width, dropout) for kind in kinds)
        self.fc = nn.Linear(width, 5)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.6, 1.4)

    def forward(self, x):
        rows = x.shape[0]
        x, kept = self.stem(x), None
        for index in self.order:
            x, kept = self.blocks[index](x, kept, rows)
        return self.fc(x.mean((2, 3)))


@st.composite
def networks(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=5))
    every = list(range(len(kinds)))
    # Some modules are called again.
    again = draw(st.lists(st.sampled_from(every), max_size=2))
    width, dropout = draw(st.sampled_from([4, 8])), draw(st.sampled_from([0.0, 0.3]))
    return RandomNet(kinds, every + again, width, dropout, draw(st.integers(0, 99)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.data())
def test_random_networks(model, data):
    model = model.eval()
    before = copy.deepcopy(model.state_dict())
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, SIZE, SIZE))
    assert ee.spec.tracer == "fx"
    assert len(ee.spec.profile.candidates) + len(ee.spec.rejected) == len(model.order)
    assert ee.spec.rejected == {}

    rows = data.draw(st.integers(1, 6))
    x = images(rows, 3, SIZE, SIZE)
    with torch.no_grad():
        assert close(ee(x), model(x), 1e-6)
        wider = images(2, 3, 2 * SIZE, SIZE)
        assert close(ee(wider), model(wider), 1e-6)
    outlets = st.integers(0, ee.num_exits)
    index = torch.tensor(data.draw(st.lists(outlets, min_size=rows, max_size=rows)))
    for twin in (ee, copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        found = twin.predict(x, exit_index=index)
        assert torch.equal(found.exit_index, index)
        assert close(found.logits, oracle(ee, x, index), 1e-5)

    ours = {key: v for key, v in ee.state_dict().items() if not key.startswith("exits.")}
    assert ours.keys() == before.keys()
    assert all(torch.equal(ours[key], before[key]) for key in before)

    torch.manual_seed(1)
    expected = model.train()(x)
    torch.manual_seed(1)
    outputs = ee.train()(x)
    assert close(outputs.logits[-1], expected, 1e-5)
    sum(logits.sum() for logits in outputs.logits).backward()
    trained = ee.state_dict()
    for key, value in model.state_dict().items():
        assert close(trained[key].float(), value.float(), 1e-5), key
