"""Random networks: each sample gets the same logits with conditional execution as without."""

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
    *("stores", "stores folded", "uses", "chunks"),
)


class Block(nn.Module):
    """Maps (features, a value for later blocks) to the same, with one of several operations."""

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

    def forward(self, x, stored, size):
        method = getattr(self, "_" + self.kind.replace(" ", "_"))
        return method(self.drop(x), stored, size)

    def _residual(self, x, stored, size):
        return self.act(x + self.two(self.act(self.norm(self.one(x))))), stored

    def _in_place(self, x, stored, size):
        y = self.two(self.one(x).relu_())
        y += x
        y *= 0.5
        return y, stored

    def _dense(self, x, stored, size):
        return self.join(torch.cat([x, self.two(self.act(self.one(x)))], 1)), stored

    def _branching(self, x, stored, size):
        return self.norm(self.one(x) + self.two(x)), stored

    def _by_batch_size(self, x, stored, size):
        _, channels, height, width = x.shape
        y = x.reshape(size * 2, channels // 2, height, width)
        y = self.slim(y).view(size, channels, height, width)
        return x + self.one(y), stored

    def _windows(self, x, stored, size):
        batch, channels, height, width = x.shape
        y = x.view(batch, channels, height // 2, 2, width // 2, 2)
        y = y.permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, channels)
        y = self.line(y.softmax(1))
        y = y.view(batch, height // 2, width // 2, 2, 2, channels)
        return x + y.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width), stored

    def _tokens(self, x, stored, size):
        y = self.line(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.one(y.reshape(x.shape)), stored

    def _stores(self, x, stored, size):
        return self.two(self.one(x)), x

    def _stores_folded(self, x, stored, size):
        return self.two(self.one(x)), x.flatten(0, 1)

    def _uses(self, x, stored, size):
        x = self.two(self.one(x))
        return (x if stored is None else x + stored.view(x.shape)), None

    def _chunks(self, x, stored, size):
        one, two = self.join(torch.cat([x, x], 1)).chunk(2, 1)
        return self.one(torch.cat([two, one * 2], 1)), stored


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
        size = x.shape[0]
        x, stored = self.stem(x), None
        for index in self.order:
            x, stored = self.blocks[index](x, stored, size)
        return self.fc(x.mean((2, 3)))


@st.composite
def networks(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=5))
    order = list(range(len(kinds)))
    # Some modules are called twice.
    again = draw(st.lists(st.sampled_from(order), max_size=2))
    width, dropout = draw(st.sampled_from([4, 8])), draw(st.sampled_from([0.0, 0.3]))
    return RandomNet(kinds, order + again, width, dropout, draw(st.integers(0, 99)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.data())
def test_random_networks_agree_with_the_original_and_the_oracle(model, data):
    model = model.eval()
    before = copy.deepcopy(model.state_dict())
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, SIZE, SIZE))
    assert ee.spec.tracer == "fx"
    assert len(ee.spec.profile.candidates) + len(ee.spec.rejected) == len(model.order)
    assert ee.spec.rejected == {}

    size = data.draw(st.integers(1, 6))
    x = images(size, 3, SIZE, SIZE)
    with torch.no_grad():
        assert close(ee(x), model(x), 1e-6)
        wider = images(2, 3, 2 * SIZE, SIZE)
        assert close(ee(wider), model(wider), 1e-6)
    exits = st.integers(0, ee.num_exits)
    index = torch.tensor(data.draw(st.lists(exits, min_size=size, max_size=size)))
    for twin in (ee, copy.deepcopy(ee), pickle.loads(pickle.dumps(ee))):
        prediction = twin.predict(x, exit_index=index)
        assert torch.equal(prediction.exit_index, index)
        assert close(prediction.logits, oracle(ee, x, index), 1e-5)

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
