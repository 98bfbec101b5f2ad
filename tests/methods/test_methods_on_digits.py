"""Every method end to end: backbone trained on digits, exits, and a frontier on test images."""

import pytest
import torch

import leenet_fx
from leenet_fx.data.digits import load_digits
from leenet_fx.demo.run import train_backbone
from leenet_fx.evaluation import cost_weights
from leenet_fx.evaluation.comparison import frozen_variants

# The backbone has no tokens, which lgvit needs.
PRESETS = [
    name for name in leenet_fx.list_methods() if not name.startswith("test-") and name != "lgvit"
]


@pytest.fixture(scope="module")
def digits():
    return load_digits(0, views=4)


@pytest.fixture(scope="module")
def backbone(digits):
    return train_backbone(digits["train"], 2, 0)


@pytest.fixture(scope="module")
def found(digits, backbone):
    """A comparison of all methods on the frozen backbone: three epochs, one seed."""
    with pytest.MonkeyPatch.context() as patch:
        # Training for each cost weight is what takes the time.
        patch.setattr(cost_weights, "LAMBDAS", (0.0, 0.2, 0.6, 2.0))
        patch.setattr(cost_weights, "ALPHAS", (0.0, 0.1, 0.2, 0.4, 0.8))
        return leenet_fx.compare(
            backbone,
            frozen_variants(PRESETS),
            digits["train"].loader(64, torch.Generator().manual_seed(0)),
            digits["calibration"].loader(64, torch.Generator().manual_seed(0)),
            digits["test"].loader(64),
            strategy="linear",
            num_exits=3,
            example_inputs=digits["test"].images[:1],
            epochs={"exits": 3, "gates": 6},
            progress=False,
        )


def test_all_methods_have_a_frontier(found):
    labels = {run.label for run in found.runs}
    swept = {f"{name}, thresholds" for name in ("diffbranch", "eenets", "jei-dnn", "leenet")}
    assert labels == set(PRESETS) | swept
    assert not found.skipped
    assert found.backbone_accuracy > 0.75
    for run in found.runs:
        assert run.backbone_accuracy == found.backbone_accuracy
        shares = torch.tensor([at.shares for at in run.points])
        assert torch.allclose(shares.sum(1), torch.ones(len(shares)))
        costs = torch.tensor([at.relative_flops for at in run.points])
        assert (costs > 0.3).all()
        assert len({round(float(cost), 3) for cost in costs}) > 1


@pytest.mark.parametrize("name", PRESETS)
def test_saving_15_percent_of_the_flops_costs_at_most_two_points_of_accuracy(found, name):
    """Of one of the two frontiers, where there are two."""
    runs = [run for run in found.runs if run.method == name]
    saved = [run.accuracy_within(0.85) for run in runs]
    assert max(at for at in saved if at is not None) >= found.backbone_accuracy - 0.02


def test_every_method_beats_random_choice_between_guessing_and_the_backbone(found):
    random_choice = (1 / 10 + found.backbone_accuracy) / 2
    for run in found.runs:
        assert run.area(10, found.backbone_accuracy) >= random_choice


def test_exits_of_differentiable_branching_learn_on_a_trained_backbone(digits, backbone):
    """Gates that train with unskilled exits close, and then exits get no gradient."""
    ee = leenet_fx.attach(
        backbone,
        "linear",
        num_exits=3,
        example_inputs=digits["test"].images[:1],
        method="diffbranch",
    )
    train = digits["train"].loader(64, torch.Generator().manual_seed(0))
    leenet_fx.fit(ee, train, method="diffbranch", alpha=0.5, epochs=3, progress=False)
    test = digits["test"]
    with torch.no_grad():
        outputs = ee.all_exits(test.images)
    accuracies = [float((z.argmax(1) == test.labels).float().mean()) for z in outputs.logits]
    assert min(accuracies) > 0.7
