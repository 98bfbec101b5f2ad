"""Tiers in processes of their own; imports little, because each process does."""

import multiprocessing

from networks import tiny

from leenet_fx.storage.exits import load
from leenet_fx.tiers.chain import NextTier
from leenet_fx.tiers.link import address_of, listen
from leenet_fx.tiers.server import TierServer
from leenet_fx.tiers.tier import Tier

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, not by each process.
CONTEXT.set_forkserver_preload(["leenet_fx.tiers.server", "leenet_fx.surgery.attach"])


def start_process(folder, first, stop, *, address="0", following=None):
    """A tier in a process of its own, and its address; following is that of the next tier."""
    here, there = CONTEXT.Pipe(duplex=False)
    arguments = (str(folder), first, stop, address, following, there)
    process = CONTEXT.Process(target=_serve, args=arguments)
    process.start()
    there.close()
    return process, here.recv()


def _serve(folder, first, stop, address, following, pipe):
    ee = load(folder, tiny())
    server = TierServer(Tier(ee.eval(), first, stop), following and NextTier(following))
    listening = listen(address)
    server.serve(listening, lambda: pipe.send(address_of(listening)))
