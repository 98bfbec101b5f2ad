"""evaluate against sums done by hand."""

import pytest
import torch
from networks import images, tiny

import leenet_fx
from leenet_fx import GateThreshold, InputError, ModeError


@pytest.fixture
def fitted():
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    x = images(37, 3, 16, 16, seed=2)
    gates = ee.all_exits(x).gate_logits.detach()
    ee.policy = GateThreshold(gates.quantile(0.7, dim=0).tolist())
    labels = ee(x).argmax(1).detach()
    labels[::3] = (labels[::3] + 1) % 5
    return ee, x, labels


def uneven(x, labels):
    return [(x[a:b], labels[a:b]) for a, b in ((0, 20), (20, 21), (21, 37))]


def test_every_mean_is_over_samples(fitted):
    ee, x, labels = fitted
    found = leenet_fx.evaluate(ee, uneven(x, labels))
    with torch.no_grad():
        prediction = ee.predict(x)
        everywhere = torch.stack([at.argmax(1) == labels for at in ee.all_exits(x).logits])
    right = prediction.logits.argmax(1) == labels
    assert found.samples == 37
    assert found.accuracy == pytest.approx(float(right.float().mean()))
    assert found.backbone_accuracy == pytest.approx(float(everywhere[-1].float().mean()))
    assert found.relative_flops == pytest.approx(float(prediction.cost.mean()))
    assert found.mean_exit == pytest.approx(float(prediction.exit_index.float().mean()))
    for i, outlet in enumerate(found.outlets):
        here = prediction.exit_index == i
        assert outlet.count == int(here.sum())
        assert outlet.share == pytest.approx(outlet.count / 37)
        assert outlet.accuracy == (
            pytest.approx(float(right[here].float().mean())) if outlet.count else None
        )
        assert outlet.accuracy_of_all == pytest.approx(float(everywhere[i].float().mean()))
    assert sum(outlet.count for outlet in found.outlets) == 37
    assert len({outlet.count for outlet in found.outlets}) > 1


def test_the_random_reference_is_what_shuffled_exits_give(fitted):
    ee, x, labels = fitted
    found = leenet_fx.evaluate(ee, [(x, labels)])
    exits = ee.predict(x).exit_index
    with torch.no_grad():
        everywhere = torch.stack([at.argmax(1) == labels for at in ee.all_exits(x).logits])
    generator = torch.Generator().manual_seed(0)
    shuffled = [
        float(
            everywhere[exits[torch.randperm(37, generator=generator)], torch.arange(37)]
            .float()
            .mean()
        )
        for _ in range(3000)
    ]
    assert found.random_accuracy == pytest.approx(sum(shuffled) / 3000, abs=0.005)


def test_the_plain_model_may_be_given(fitted):
    ee, x, labels = fitted
    model = tiny()
    found = leenet_fx.evaluate(ee, [(x, labels)], plain=model)
    expected = (model(x).argmax(1) == labels).float().mean()
    assert found.backbone_accuracy == pytest.approx(float(expected))
    assert found.seconds > 0
    assert found.time_ratio == found.seconds / found.backbone_seconds


def test_it_reads_as_a_table_and_as_json(fitted):
    ee, x, labels = fitted
    found = leenet_fx.evaluate(ee, [(x, labels)])
    assert max(map(len, str(found).splitlines())) <= 80
    assert "blocks.2" in str(found)
    assert found.to_dict()["outlets"][0]["name"] == "blocks.0"


def test_bad_input(fitted):
    ee, x, labels = fitted
    with pytest.raises(InputError, match="loader is empty"):
        leenet_fx.evaluate(ee, [])
    with pytest.raises(InputError, match="labels are absent"):
        leenet_fx.evaluate(ee, [x])
    with pytest.raises(ModeError, match=r"call \.eval\(\)"):
        leenet_fx.evaluate(ee.train(), [(x, labels)])
