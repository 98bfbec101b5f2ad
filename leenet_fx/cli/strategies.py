"""leenet-fx strategies: names of the placement strategies."""

from __future__ import annotations

import inspect

from leenet_fx.cli import options as o
from leenet_fx.cli.output import print_json


@o.expand_options
def strategies(output: o.OutputOptions) -> None:
    """List the placement strategies."""
    from placement import get_strategy, list_strategies

    summaries = {
        name: (inspect.getdoc(get_strategy(name)) or "").split("\n")[0]
        for name in list_strategies()
    }
    if output.is_json:
        print_json(summaries)
        return
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        print(f"{name:{width}}  {summary}")
