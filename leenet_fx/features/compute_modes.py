"""Modes of torch that the caller may be in, and that training does not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from leenet_fx.errors import InputError
from leenet_fx.surgery.module import EarlyExitModule


@contextmanager
def default_modes(ee: EarlyExitModule, *, grad: bool) -> Iterator[None]:
    """Leave inference mode and autocast, and set whether gradients are recorded.

    Args:
        ee: the network that is computed.
        grad: whether gradients are recorded.

    Raises:
        InputError: the network was made in inference mode, so that autograd cannot use it.
    """
    if any(tensor.is_inference() for tensor in (*ee.parameters(), *ee.buffers())):
        raise InputError(
            "The network was made or copied under torch.inference_mode(), and such tensors cannot "
            "be trained: build the model and call attach outside of it (torch.no_grad() is fine)."
        )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        for kind in {"cpu", "cuda", ee.device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
