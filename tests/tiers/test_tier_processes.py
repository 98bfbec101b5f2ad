"""Two and three tiers in processes of their own, and tiers that disappear."""

import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import close
from tier_helpers import X, assert_same, attached, first_tier
from tier_process import start_process

import leenet_fx
from leenet_fx.tiers import chain

CUTS = {"two tiers": (2,), "three tiers": (1, 3)}


@pytest.fixture(scope="module")
def ee():
    return attached()


@pytest.fixture(scope="module")
def folder(ee, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiers") / "saved"
    leenet_fx.save(ee, path)
    return path


@pytest.fixture
def start(folder):
    """Starts tiers behind cuts; returns their processes and the address of the second tier."""
    started = []

    def start_tiers(*cuts, address="0"):
        following, processes = None, []
        for first, stop in reversed(list(zip(cuts, [*cuts[1:], 5], strict=True))):
            process, following = start_process(
                folder, first, stop, address=address, following=following
            )
            started.append(process)
            processes.insert(0, process)
        return processes, following

    yield start_tiers
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_tiers_answer_as_predict_does(ee, start, cuts):
    _, address = start(*cuts)
    with ThreadPoolExecutor(2) as pool:
        # Two devices at once, each with a connection of its own.
        devices = [first_tier(ee, cuts[0], address) for _ in range(2)]
        batches = [X, X[:1], X[7:20], X[:0]]
        for batch in batches:
            for found in pool.map(lambda device, b=batch: device.predict(b), devices):
                expected = ee.predict(batch)
                assert_same(found, expected)
                assert not found.fallback.any()
                edges = torch.tensor(cuts)
                assert torch.equal(
                    found.tier.long(), torch.bucketize(expected.exit_index, edges, right=True)
                )
                passed = [int((expected.exit_index >= cut).sum()) for cut in cuts]
                assert [size > 0 for size in found.sent] == [n > 0 for n in passed if n]
        for device in devices:
            device.close()


def test_samples_of_a_tier_that_is_gone_are_answered_at_the_last_exit_before_it(
    ee, start, caplog, monkeypatch
):
    processes, address = start(2)
    device = first_tier(ee, 2, address)
    whole = ee.predict(X)
    assert_same(device.predict(X), whole)
    processes[0].kill()
    processes[0].join()
    with caplog.at_level(logging.WARNING):
        found = device.predict(X)
        assert torch.equal(device.predict(X).fallback, found.fallback)
    assert len([r for r in caplog.records if "answered at the last local exit" in r.message]) == 1
    late = whole.exit_index >= 2
    assert 0 < late.sum() < len(X)
    assert torch.equal(found.fallback, late)
    assert torch.equal(found.prediction.exit_index, whole.exit_index.clamp(max=1))
    assert torch.equal(found.prediction.logits[~late], whole.logits[~late])
    everywhere = ee.all_exits(X).logits[1]
    assert close(found.prediction.logits[late], everywhere[late], 1e-5)
    assert not found.tier.any()
    # A tier that returns is used again.
    monkeypatch.setattr(chain, "RETRY_SECONDS", 0)
    device._retry_at = 0
    start(2, address=address)
    assert_same(device.predict(X), whole)
    device.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_an_edge_answers_for_a_cloud_that_is_gone(ee, start, end):
    processes, address = start(1, 3)
    device = first_tier(ee, 1, address, timeout=2.0 if end == signal.SIGSTOP else 30.0)
    whole = ee.predict(X)
    assert_same(device.predict(X), whole)
    os.kill(processes[1].pid, end)
    found = device.predict(X)
    late = whole.exit_index >= 3
    assert late.sum() > 0
    assert torch.equal(found.fallback, late)
    assert torch.equal(found.tier.bool(), whole.exit_index >= 1)
    assert torch.equal(found.prediction.exit_index, whole.exit_index.clamp(max=2))
    assert close(found.prediction.logits[late], ee.all_exits(X).logits[2][late], 1e-5)
    device.close()
