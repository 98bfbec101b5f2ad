"""Keyword arguments that a function does not accept: errors that name the nearest one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

from leenet_fx.methods import Method, list_method_options, list_methods

P = ParamSpec("P")
R = TypeVar("R")


def check_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that an unknown keyword's TypeError names what was probably meant.

    If the keyword is an option of a method, the message explains how to pass it to the method,
    which a parameter called `method` takes; otherwise it names the nearest keyword.
    """
    accepted = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for keyword in kwargs:
            if keyword not in accepted:
                has_method = "method" in accepted
                options = _method_options(kwargs.get("method")) if has_method else {}
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument '{keyword}'."
                    f"{_hint(keyword, accepted, options)}"
                )
        return function(*args, **kwargs)

    return checked


def _hint(keyword: str, accepted: list[str], options: dict[str, str]) -> str:
    """Return what was probably meant; empty if nothing is similar.

    Args:
        keyword: that the function does not accept.
        accepted: keywords of the function.
        options: of methods, each with the name of a method.
    """
    near = get_close_matches(keyword, {**options, **dict.fromkeys(accepted)}, n=1)
    if not near:
        return ""
    if near[0] in accepted:
        return f" Did you mean '{near[0]}'?"
    call = f"leenet_fx.get_method('{options[near[0]]}', {near[0]}=…)"
    return f" Options belong to the method: method={call}."


def _method_options(method: object) -> dict[str, str]:
    """Return the options of a method, or of all, each with the name of a method that has it."""
    name = method.name if isinstance(method, Method) else method
    names = [name] if name in list_methods() else list_methods()
    return {option: str(name) for name in names for option in list_method_options(str(name))}
