"""A latency drawn at random."""

import torch

from leenet_fx.cost.latency import Latency


def random_latency(exits: int, seed: int = 0) -> Latency:
    """Times drawn at random for batches of 1, 2 and 5."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int):
        times = torch.rand(count, 3, generator=generator).cumsum(1)
        return tuple(map(tuple, times.tolist()))

    return Latency(
        device="a processor",
        threads=1,
        dtype="float32",
        reads="gate",
        compiled=False,
        batch_sizes=(1, 2, 5),
        reference=2,
        backbone=draw(1)[0],
        stages=draw(exits + 1),
        stage_and_exit=draw(exits),
        classification=draw(exits),
        regrouping=draw(exits),
    )
