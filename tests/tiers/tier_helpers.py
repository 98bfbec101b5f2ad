"""Networks in tiers, in threads of this process."""

import threading
from contextlib import contextmanager

import torch
from helpers import half_leave
from networks import images, tiny

import leenet_fx
from leenet_fx.tiers.chain import Chain, NextTier
from leenet_fx.tiers.link import address_of, listen
from leenet_fx.tiers.server import TierServer
from leenet_fx.tiers.tier import Tier

X = images(40, 3, 16, 16, seed=3)


def attached(**options):
    """A network with exits 0 to 3, at each of which half of the samples of X exit."""
    options = {"example_inputs": X[:1], **options}
    return half_leave(leenet_fx.attach(tiny(), "every", **options).eval(), X)


@contextmanager
def serving(ee, *cuts, bandwidth=None):
    """The address of the second tier; the tiers behind the cuts run in threads."""
    ends = [*cuts[1:], ee.num_exits + 1]
    following, sockets = None, []
    for first, stop in reversed(list(zip(cuts, ends, strict=True))):
        listening = listen("0")
        server = TierServer(Tier(ee, first, stop), following)
        threading.Thread(target=server.serve, args=(listening,), daemon=True).start()
        sockets.append(listening)
        following = NextTier(address_of(listening), bandwidth=bandwidth)
    try:
        yield following.address
    finally:
        for listening in sockets:
            listening.shutdown(2)


def first_tier(ee, stop, address, **options):
    """The first tier, connected to the one at an address."""
    return Chain(Tier(ee, 0, stop), NextTier(address, **options))


def assert_same(found, expected):
    """The prediction of tiers is that of `predict`, bit by bit."""
    assert torch.equal(found.prediction.logits, expected.logits)
    assert torch.equal(found.prediction.exit_index, expected.exit_index)
    assert torch.equal(found.prediction.confidence, expected.confidence)
    assert torch.equal(found.prediction.cost, expected.cost)
