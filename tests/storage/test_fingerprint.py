"""Fingerprints of a network's operations and weights."""

import pytest
import torch
from helpers import attached
from networks import images, tiny

import leenet_fx
from leenet_fx.storage.fingerprint import backbone_digest, fingerprint


def exits_on(model):
    return leenet_fx.attach(model, "every", example_inputs=images(1, 3, 16, 16))


def test_the_fingerprint_depends_on_operations_and_shapes_only():
    first = fingerprint(exits_on(tiny(seed=0)))
    assert first == fingerprint(exits_on(tiny(seed=1)))
    assert [segment["up_to"] for segment in first] == [*(f"blocks.{i}" for i in range(4)), "final"]
    wider = fingerprint(exits_on(tiny(width=16)))
    assert all(a["digest"] != b["digest"] for a, b in zip(first, wider, strict=True))


def test_a_change_after_the_last_exit_shows_in_the_last_segment_only():
    ee = exits_on(tiny())
    first = fingerprint(ee)
    output = next(node for node in ee.graph.nodes if node.op == "output")
    final = output.args[0].args[0]
    with ee.graph.inserting_after(final):
        doubled = ee.graph.call_function(torch.add, (final, final))
    output.args[0].replace_input_with(final, doubled)
    assert fingerprint(ee)[:-1] == first[:-1]
    assert fingerprint(ee)[-1] != first[-1]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_digest_of_weights_does_not_depend_on_threads_or_memory_format(threads):
    ee = attached()
    expected = backbone_digest(ee)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert backbone_digest(ee.to(memory_format=torch.channels_last)) == expected
    finally:
        torch.set_num_threads(before)


def test_the_digest_of_weights_shows_a_change_that_cancels_in_a_sum():
    ee = attached()
    expected = backbone_digest(ee)
    with torch.no_grad():
        weight = ee.get_parameter("stem.weight")
        weight.copy_(weight.flip(0))
    assert backbone_digest(ee) != expected


def test_exits_are_not_in_the_digest_of_weights():
    ee = attached()
    expected = backbone_digest(ee)
    with torch.no_grad():
        for parameter in ee.exits.parameters():
            parameter.add_(1)
    assert backbone_digest(ee) == expected
