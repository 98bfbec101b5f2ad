"""A network with exits as a table of text."""

from __future__ import annotations

from collections.abc import Iterable

from leenet_fx import tables
from leenet_fx.cost.cost_table import CostTable
from leenet_fx.parts.branches import Branch
from leenet_fx.policies import Policy
from leenet_fx.surgery.spec import ExitSpec


def summary(spec: ExitSpec, branches: Iterable[Branch], policy: Policy, costs: CostTable) -> str:
    """Return a table with one row per exit and one for the final classifier.

    Args:
        spec: description of the network.
        branches: N, in order.
        policy: the present policy.
        costs: N+1 rows under this policy.
    """
    disabled = policy.reads == "nothing"
    described = "early exits disabled" if disabled else repr(policy)
    backbone = costs.backbone
    table = tables.new_table(
        f"{spec.profile.model}: {len(spec.cuts)} exits, '{spec.placement.strategy}' placement, "
        f"'{spec.branch}' branches, {spec.num_classes} classes",
        "exit",
        "after",
        "features",
        "FLOPs",
        "rel.",
        "params",
        "rel.",
        caption=f"{costs.unit}; rel. = relative to the backbone "
        f"({tables.quantity(backbone.flops)}FLOPs, {tables.quantity(backbone.params)} "
        f"parameters). Policy: {described}.",
    )
    features = [*map(_feature_shapes, branches), ""]
    for index, (row, shapes) in enumerate(zip(costs, features, strict=True)):
        table.add_row(
            str(index),
            row.name,
            shapes,
            tables.quantity(row.flops),
            f"{row.relative_flops:.3f}",
            tables.quantity(row.params),
            f"{row.relative_params:.3f}",
        )
    return tables.render(table)


def _feature_shapes(branch: Branch) -> str:
    shapes = ["x".join(map(str, f.shape[1:])) for f in branch.features]
    return shapes[0] if len(shapes) == 1 else f"{shapes[-1]} +{len(shapes) - 1}"
