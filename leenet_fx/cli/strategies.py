"""leenet-fx strategies: the placements there are."""

from __future__ import annotations

import inspect

from leenet_fx.cli.output import Format, FormatOption, JsonFlag, print_json, wants_json


def strategies(format: FormatOption = Format.human, as_json: JsonFlag = False) -> None:
    """List the placement strategies."""
    from placement import get_strategy, list_strategies

    found = {
        name: (inspect.getdoc(get_strategy(name)) or "").split("\n")[0]
        for name in list_strategies()
    }
    if wants_json(format, as_json):
        print_json(found)
        return
    width = max(map(len, found))
    for name, description in found.items():
        print(f"{name:{width}}  {description}")
