"""Plans: the method that is trained, and the arguments that a run to resume must share."""

import copy
import logging

import pytest
from helpers import InterruptedLoader, attached, loader, shuffled
from networks import tiny

import leenet_fx
from leenet_fx import InputError, UnknownNameError
from leenet_fx.methods import MethodConfig
from leenet_fx.methods.phases import single_update_phase
from leenet_fx.objectives import SumOfExits

NONE = {"epochs": 0}


def custom(lr=0.1, name="heads"):
    """Return a method that is not registered."""
    phases = (single_update_phase(name, "classifiers", SumOfExits(), lr=lr),)
    return leenet_fx.Method(phases, leenet_fx.MaxProbability(0.9), "a test")


def test_a_network_is_trained_by_the_method_it_was_attached_for(caplog):
    ee, other = attached(method="ztw"), attached(method="ztw")
    found = leenet_fx.fit(ee, shuffled(), epochs=2)
    expected = leenet_fx.fit(other, shuffled(), epochs=2, method="ztw")
    assert found.method == "ztw"
    assert [epoch.train_loss for epoch in found.history] == [
        epoch.train_loss for epoch in expected.history
    ]
    assert ee.policy == other.policy
    assert "was attached for" not in caplog.text


def test_options_of_the_recorded_method_are_used_and_saved(tmp_path):
    method = leenet_fx.get_method("shallow-deep", threshold=0.6)
    ee = attached(method=method)
    assert leenet_fx.fit(ee, loader(), epochs=1, out=tmp_path).options == {"threshold": 0.6}
    assert ee.policy == leenet_fx.MaxProbability(0.6)
    loaded = leenet_fx.load(tmp_path, tiny())
    assert loaded.spec.method == MethodConfig("shallow-deep", {"threshold": 0.6})
    assert leenet_fx.fit(loaded, loader(), **NONE).options == {"threshold": 0.6}


def test_without_a_recorded_method_the_default_is_trained_and_recorded():
    ee = attached()
    assert leenet_fx.fit(ee, loader(), **NONE).method == leenet_fx.methods.DEFAULT
    assert ee.spec.method == MethodConfig(leenet_fx.methods.DEFAULT)


@pytest.mark.parametrize(
    "other", ["leenet", leenet_fx.get_method("shallow-deep", threshold=0.6)], ids=["name", "option"]
)
def test_another_method_than_the_recorded_one_is_logged(other, caplog):
    ee = attached(method="shallow-deep")
    with caplog.at_level(logging.WARNING, logger="leenet_fx"):
        leenet_fx.fit(ee, loader(), method="shallow-deep", **NONE)
        assert not caplog.records
        leenet_fx.fit(ee, loader(), method=other, **NONE)
    assert len(caplog.records) == 1
    assert "last trained by, method 'shallow-deep', and is trained by method" in caplog.text
    caplog.clear()
    leenet_fx.fit(ee, loader(), **NONE)
    assert not caplog.records


def test_a_method_that_is_not_registered_is_trained_and_must_be_passed_again():
    ee = attached()
    result = leenet_fx.fit(ee, loader(), method=custom(), epochs=2)
    assert [epoch.phase for epoch in result.history] == ["heads", "heads"]
    assert result.method == "custom"
    assert ee.policy == leenet_fx.MaxProbability(0.9)
    with pytest.raises(InputError, match="pass it as method="):
        leenet_fx.fit(ee, loader(), epochs=1)
    leenet_fx.fit(ee, loader(), method=custom(), **NONE)


def test_a_run_with_a_method_that_is_not_registered_is_resumed(tmp_path):
    options = {"epochs": 4, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.fit(attached(), InterruptedLoader(3), method=custom(), **options)
    with pytest.raises(InputError, match=r"made with phases=\['heads'\], this run has phases="):
        leenet_fx.fit(attached(), loader(), method=custom(name="x"), resume=True, **options)
    ee, whole = attached(), attached()
    leenet_fx.fit(ee, loader(), method=custom(), resume=True, **options)
    leenet_fx.fit(whole, loader(), method=custom(), epochs=4)
    weights = [one.exits[0].head.linear.weight for one in (ee, whole)]
    assert weights[0].equal(weights[1])
    again = leenet_fx.fit(attached(), loader(), method=custom(), resume=True, **options)
    assert len(again.history) == 4


def test_resuming_compares_method_and_options(tmp_path):
    options = {"epochs": 4, "out": tmp_path, "resume": True}
    method = leenet_fx.get_method("shallow-deep", threshold=0.6)
    with pytest.raises(KeyboardInterrupt):
        leenet_fx.fit(attached(), InterruptedLoader(3), method=method, **options)
    with pytest.raises(InputError, match=r"made with options=\{'threshold': 0.6\}"):
        leenet_fx.fit(attached(), loader(), **options)
    with pytest.raises(InputError, match="made with method='shallow-deep', this run has method="):
        leenet_fx.fit(attached(), loader(), method="branchynet", **options)
    ee = attached(method=method)
    leenet_fx.fit(ee, loader(), **options)
    assert ee.policy == leenet_fx.MaxProbability(0.6)


def test_a_failed_call_records_no_method():
    ee = attached(method="shallow-deep")
    before = copy.copy(ee.spec)
    with pytest.raises(UnknownNameError, match="Did you mean 'leenet'"):
        leenet_fx.fit(ee, loader(), method="leenett")
    with pytest.raises(InputError, match="label"):
        leenet_fx.fit(ee, [(x, y + 9) for x, y in loader()], epochs=1)
    assert ee.spec == before
