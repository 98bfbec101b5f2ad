"""Streams of batches whose remaining samples are re-batched."""

import pytest
import torch
from helpers import half_leave
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ZOO, close, images, tiny

import leenet_fx
from leenet_fx import GateThreshold, InputError, ModeError, Patience, predict_stream


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options).eval()


STREAMED = {
    "gates": {},
    "history": {"branch_options": {"gate": "history"}},
    "cascade": {"method": "ztw"},
    "features": {"branch_options": {"gate": "features"}},
}
NETWORKS = {
    name: half_leave(attached(**options), images(64, 3, 16, 16))
    for name, options in STREAMED.items()
}
NETWORKS["patience"] = attached()
NETWORKS["patience"].policy = Patience(1)
NETWORKS["disabled"] = attached()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.lists(st.integers(0, 9), min_size=0, max_size=7),
    st.integers(1, 12),
    st.integers(0, 4),
)
def test_a_stream_predicts_each_batch_as_predict_does(name, sizes, full, delay):
    ee = NETWORKS[name]
    batches = [images(size, 3, 16, 16, seed=turn) for turn, size in enumerate(sizes)]
    found = list(predict_stream(ee, batches, batch_size=full, max_delay=delay))
    assert len(found) == len(batches)
    for prediction, batch in zip(found, batches, strict=True):
        expected = ee.predict(batch)
        assert torch.equal(prediction.exit_index, expected.exit_index)
        assert torch.equal(prediction.cost, expected.cost)
        assert close(prediction.logits, expected.logits, 1e-5) if len(batch) else True
        assert prediction.logits.shape == expected.logits.shape


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_no_prediction_waits_for_more_batches_than_allowed(delay):
    ee = NETWORKS["gates"]
    read = []

    def loader():
        for turn in range(12):
            read.append(turn)
            yield images(4, 3, 16, 16, seed=turn), torch.zeros(4)

    for turn, _ in enumerate(predict_stream(ee, loader(), batch_size=1000, max_delay=delay)):
        assert len(read) - 1 - turn <= delay


def test_later_stages_run_on_full_batches():
    ee = NETWORKS["gates"]
    seen = []
    last = ee.get_submodule("blocks.3.conv1")
    hook = last.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    batches = [images(8, 3, 16, 16, seed=turn) for turn in range(16)]
    alone, together = [], []
    for found, run in (
        (alone, lambda: [ee.predict(b) for b in batches]),
        (together, lambda: list(predict_stream(ee, batches, max_delay=100))),
    ):
        seen.clear()
        run()
        found += seen
    hook.remove()
    assert sum(together) == sum(alone)
    assert min(together[:-1]) >= 8
    assert len(together) < len(alone) / 2


def test_a_stream_of_folded_windows():
    name = "torchvision/swin_t"
    options, size, _ = ZOO[name]
    model = leenet_fx.create_model(name, **options).eval()
    example = images(1, 3, size, size)
    ee = leenet_fx.attach(model, "linear", num_exits=2, example_inputs=example, copy=False)
    x = images(8, 3, size, size)
    half_leave(ee, x)
    found = list(predict_stream(ee, x.split(2), max_delay=3))
    expected = ee.predict(x)
    assert torch.equal(torch.cat([p.exit_index for p in found]), expected.exit_index)
    assert close(torch.cat([p.logits for p in found]), expected.logits, 1e-4)


def test_predict_stream_rejects_wrong_arguments():
    ee = attached()
    with pytest.raises(ModeError):
        predict_stream(attached().train(), [])
    for wrong in ({"batch_size": 0}, {"max_delay": -1}, {"batch_size": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            predict_stream(ee, [], **wrong)
    with pytest.raises(InputError, match="yield images"):
        list(predict_stream(ee, [["a"]]))
    ee.policy = GateThreshold(0.0)
    with pytest.raises(InputError, match="channels"):
        list(predict_stream(ee, [images(2, 4, 16, 16)]))
