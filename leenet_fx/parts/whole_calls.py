"""Functions that stay one operator when a branch is traced, to run on real tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

from leenet_fx.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])


def traced_whole(function: Function) -> Function:
    """Make a traced graph call a function of the module's top level instead of its operators.

    So what it reads of its first argument, such as a size, is read of the tensors of each call.
    """

    @functools.wraps(function)
    def call(values: Any, *arguments: Any) -> Any:
        if isinstance(values, fx.Proxy):
            return values.tracer.create_proxy("call_function", call, (values, *arguments), {})
        return function(values, *arguments)

    return call  # type: ignore[return-value]


@traced_whole
def checked_length(values: Any, length: int, branch: str, unit: str) -> Any:
    """Return features (B, n, …) of a branch that reads one image size, if n is `length`.

    Args:
        values: the features.
        length: n of the features that the branch was built for.
        branch: name of the branch, with its article, for the message.
        unit: what is counted, for the message.

    Raises:
        InputError: n is another number.
    """
    if values.shape[1] != length:
        raise InputError(
            f"{branch} branch built for {length} {unit} got {values.shape[1]}: it accepts one "
            "image size only; 'pool' accepts any."
        )
    return values
