"""Resuming with more epochs: what is kept, and what a message says of it."""

import logging

import pytest
import torch
from helpers import InterruptedLoader, attached, loader
from networks import images, tiny

import leenet_fx
from leenet_fx import InputError
from leenet_fx.training.checkpoint import FILE

X = images(8, 3, 16, 16)


def fit(folder, epochs, data=None, **options):
    ee = attached()
    data = loader() if data is None else data
    result = leenet_fx.fit(ee, data, epochs=epochs, out=folder, method="leenet", **options)
    return ee, result


def same(ee, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(ee.all_exits(X).logits, other.all_exits(X).logits, strict=True)
    )


def test_a_finished_run_of_fewer_epochs_is_trained_from_the_start(tmp_path, caplog):
    whole, _ = fit(tmp_path / "whole", 3)
    fit(tmp_path / "run", 2)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        longer, result = fit(tmp_path / "run", 3, resume=True)
    assert "is finished, with [2, 2] epochs" in caplog.text
    assert same(longer, whole)
    assert len(result.history) == 6
    assert same(leenet_fx.load(tmp_path / "run", tiny()), whole)
    with pytest.raises(
        InputError, match=r"made with epochs=\[3, 3\], this run has epochs=\[2, 2\]"
    ):
        fit(tmp_path / "run", 2, resume=True)


def test_an_interrupted_run_goes_on_to_more_epochs_and_says_so(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 3, InterruptedLoader(2))
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        _, result = fit(tmp_path, 4, resume=True)
    assert "Phase 'exits' goes on to 4 epochs" in caplog.text
    assert "learning rates of a run of 3" in caplog.text
    assert [(e.phase, e.epoch) for e in result.history] == [
        (phase, epoch) for phase in ("exits", "gates") for epoch in (1, 2, 3, 4)
    ]


def test_a_phase_to_come_can_be_lengthened_silently_and_a_past_one_cannot(tmp_path, caplog):
    def interrupt(folder):
        # Exits take two passes of the loader an epoch and gates more: stop in the second phase.
        for passes in range(2, 40):
            with pytest.raises(KeyboardInterrupt):
                fit(folder, {"exits": 1, "gates": 3}, InterruptedLoader(passes), overwrite=True)
            if (folder / FILE).exists():
                phases = (folder / "metrics.csv").read_text()
                if "gates" in phases:
                    return

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "first", {"exits": 3, "gates": 1}, InterruptedLoader(2))
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        _, result = fit(tmp_path / "first", {"exits": 3, "gates": 2}, resume=True)
    assert "goes on" not in caplog.text
    assert [e.phase for e in result.history] == ["exits"] * 3 + ["gates"] * 2
    interrupt(tmp_path / "second")
    with pytest.raises(
        InputError, match=r"made with epochs=\[1, 3\], this run has epochs=\[2, 3\]"
    ):
        fit(tmp_path / "second", {"exits": 2, "gates": 3}, resume=True)


def test_a_run_is_replaced_on_request_only(tmp_path):
    fit(tmp_path, 1)
    with pytest.raises(InputError, match="overwrite=True"):
        fit(tmp_path, 2)
    ee, _ = fit(tmp_path, 2, overwrite=True)
    assert same(leenet_fx.load(tmp_path, tiny()), ee)
    with pytest.raises(InputError, match="replaces it"):
        fit(tmp_path, 2, overwrite=True, resume=True)
    with pytest.raises(InputError, match="need out="):
        leenet_fx.fit(attached(), loader(), overwrite=True)
