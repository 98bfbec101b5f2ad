"""Checks and networks that several tests of graph capture use."""

import copy
import pickle

import torch
from networks import TinyNet, close, images, oracle

EXAMPLE = images(1, 3, 16, 16)


def check(model, ee, expected=None, size=16, pickles=True):
    """Compare with the model without early exits, with the oracle, after copying; same keys."""
    expected = expected or model
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = images(batch, 3, size, size, seed=batch)
            assert close(ee(x), expected(x), 1e-5)
    x = images(5, 3, size, size)
    n = ee.num_exits
    index = torch.tensor([0, n, 0, n - 1, n])
    twins = [ee, copy.deepcopy(ee), *([pickle.loads(pickle.dumps(ee))] if pickles else [])]
    for twin in twins:
        assert close(twin.predict(x, exit_index=index).logits, oracle(ee, x, index), 1e-5)
    ours = {key for key in ee.state_dict() if not key.startswith("exits.")}
    assert ours == set(model.state_dict())


class Encoder(TinyNet):
    num_classes = 0

    def forward(self, x):
        return self.blocks(self.stem(x))
