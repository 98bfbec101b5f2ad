"""EENet's scheduler on exits of known quality."""

import math

import pytest
import torch
import torch.nn.functional as F

from leenet_fx import InputError
from leenet_fx.calibration.cached_outputs import CachedOutputs
from leenet_fx.calibration.scheduler import ExitScheduler, fit_scheduler
from leenet_fx.calibration.solvers import mean_cost

COSTS = [0.25, 0.5, 0.75, 1.0]
CLASSES = 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs_of(samples, seed):
    """Logits around the truth; noise falls from exit to exit."""
    generator = seeded(seed)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    hard = torch.rand(samples, 1, generator=generator) * 3
    logits = []
    for noise in (1.6, 1.2, 0.8, 0.4):
        drawn = torch.randn(samples, CLASSES, generator=generator)
        logits.append(3 * F.one_hot(labels, CLASSES) + noise * hard * drawn)
    empty = tuple(torch.empty(samples, 0) for _ in range(3))
    return CachedOutputs(tuple(logits), empty, labels)


@pytest.mark.parametrize("budget", [0.25, 0.3, 0.5, 0.8, 1.0, 2.0])
def test_the_budget_is_met_and_used(budget):
    outputs = outputs_of(400, 0)
    scheduler = fit_scheduler(outputs, COSTS, budget, generator=seeded(), epochs=40)
    spent = mean_cost(scheduler.exit_indices(outputs.logits), COSTS)
    assert spent <= budget
    assert spent >= min(budget, 1.0) - 0.08


def accuracy(outputs, exits):
    return float(outputs.is_correct(exits).double().mean())


def test_it_chooses_better_than_chance_at_the_same_exit_rates():
    fitted, test = outputs_of(1000, 1), outputs_of(4000, 2)
    scheduler = fit_scheduler(fitted, COSTS, 0.5, generator=seeded(), epochs=100)
    exits = scheduler.exit_indices(test.logits)
    assert mean_cost(exits, COSTS) == pytest.approx(0.5, abs=0.04)
    by_chance = exits[torch.randperm(len(exits), generator=seeded())]
    assert accuracy(test, exits) > accuracy(test, by_chance) + 0.04


def test_scores_start_as_the_largest_probability_and_stay_in_the_unit_interval():
    outputs = outputs_of(50, 0)
    scheduler = ExitScheduler(3, CLASSES)
    scheduler.reset(seeded())
    expected = torch.stack([x.softmax(1).amax(1) for x in outputs.logits[:-1]], 1)
    assert torch.allclose(scheduler.scores(outputs.logits), expected, atol=1e-6)
    fitted = fit_scheduler(outputs, COSTS, 0.5, generator=seeded(), epochs=40, lr=0.5)
    scores = fitted.scores(outputs.logits)
    assert bool(((scores >= 0) & (scores <= 1)).all())


def test_an_exits_score_depends_on_no_later_exit():
    outputs = outputs_of(200, 0)
    scheduler = fit_scheduler(outputs, COSTS, 0.5, generator=seeded(), epochs=30)
    changed = [*outputs.logits[:2], *(torch.randn(200, CLASSES) for _ in range(2))]
    assert torch.equal(scheduler.scores(changed)[:, :2], scheduler.scores(outputs.logits)[:, :2])


def test_the_same_generator_gives_the_same_scheduler_and_outputs_are_not_changed():
    outputs = outputs_of(200, 0)
    before = [logits.clone() for logits in outputs.logits]
    state = torch.get_rng_state()
    first, second = (
        fit_scheduler(outputs, COSTS, 0.5, generator=seeded(3), epochs=20) for _ in range(2)
    )
    assert first.thresholds == second.thresholds
    assert torch.equal(first.scores(outputs.logits), second.scores(outputs.logits))
    assert all(map(torch.equal, before, outputs.logits))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "costs", "budget", "message"),
    [
        ("unlabelled", COSTS, 0.5, "1 of 20 have none"),
        ("empty", COSTS, 0.5, "0 of 0"),
        ("one class", COSTS, 0.5, "at least 2 classes"),
        (None, COSTS[:3], 0.5, "Expected 4 costs"),
        (None, [0.5, 0.25, 0.75, 1.0], 0.5, "do not decrease"),
        (None, [0.25, math.nan, 0.75, 1.0], 0.5, "do not decrease"),
        (None, COSTS, 0.2, r"budget is 0\.2"),
        (None, COSTS, math.nan, "budget is nan"),
        (None, COSTS, math.inf, "budget is inf"),
    ],
)
def test_what_does_not_fit_is_an_error(change, costs, budget, message):
    outputs = outputs_of(20, 0)
    if change == "unlabelled":
        outputs.labels[3] = -1
    if change == "empty":
        outputs = outputs.select(slice(0))
    if change == "one class":
        logits = tuple(x[:, :1] for x in outputs.logits)
        outputs = CachedOutputs(logits, outputs.gate_inputs, torch.zeros_like(outputs.labels))
    with pytest.raises(InputError, match=message):
        fit_scheduler(outputs, costs, budget, generator=seeded())
