"""Gates on features: whether they learn to tell samples apart."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx.data.digits import load_digits
from leenet_fx.demo.run import train_backbone


@pytest.fixture(scope="module")
def digits():
    return load_digits(0, views=1)


@pytest.fixture(scope="module")
def backbone(digits):
    return train_backbone(digits["train"], 2, 0)


def spread(ee, images):
    """Standard deviation over samples of the probability that each gate opens."""
    with torch.no_grad():
        return ee.all_exits(images).gate_logits.sigmoid().std(0)


@pytest.mark.parametrize("branch", ["pool", "bnpool"])
def test_the_spread_of_feature_gates_over_samples_grows_in_training(digits, backbone, branch):
    test = digits["test"].images
    ee = leenet_fx.attach(
        backbone,
        "linear",
        num_exits=2,
        method="leenet",
        branch=branch,
        branch_options={"gate": "features"},
        example_inputs=test[:1],
    )
    images = TensorDataset(digits["train"].images[:1000], digits["train"].labels[:1000])
    train = DataLoader(images, 64)
    options = {"calibration": digits["calibration"].loader(64), "method": "leenet", "alpha": 0.3}
    leenet_fx.fit(ee, train, epochs={"exits": 2, "gates": 0}, **options)
    start = spread(ee, test)
    leenet_fx.fit(ee, train, epochs={"exits": 0, "gates": 3}, **options)
    trained = spread(ee, test)
    assert (trained > start).all()
    assert (trained > 0.1).all()


@pytest.mark.parametrize("method", ["diffbranch", "eenets"])
@pytest.mark.parametrize(
    ("recipe", "gate"), [("disjoint", "confidence"), ("joint", "features"), ("mixed", "features")]
)
def test_gates_read_the_heads_confidence_where_the_backbone_is_frozen(
    backbone, digits, method, recipe, gate
):
    images = digits["test"].images[:1]
    chosen = leenet_fx.get_method(method, recipe=recipe)
    ee = leenet_fx.attach(backbone, "linear", num_exits=2, method=chosen, example_inputs=images)
    assert ee.spec.branch_options["gate"] == gate
    # What is given comes first.
    ee = leenet_fx.attach(
        backbone,
        "linear",
        num_exits=2,
        method=chosen,
        branch_options={"gate": "history"},
        example_inputs=images,
    )
    assert ee.spec.branch_options["gate"] == "history"
