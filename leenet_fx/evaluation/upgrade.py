"""Schema of the JSON records, and the upgrade of records of schema 1.

`evaluation.json`, `sweep.json` and `comparison.json` are records. Schema 2 differs from schema 1 in
the names of keys and of some values; `LEVELS` lists the differences by level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from leenet_fx.errors import StorageError
from leenet_fx.storage.upgrade import GATES, METHODS, SPLITS

SCHEMA = 2


@dataclass(frozen=True)
class Level:
    """Differences between the schemas in one JSON object, or in each object of a list.

    Attributes:
        keys: key of schema 1 → key of schema 2.
        values: key of schema 2 → value of schema 1 → value of schema 2.
        children: key of schema 2 → differences in its value.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    children: Mapping[str, Level] = field(default_factory=dict)


ACCURACY = {"plain_accuracy": "backbone_accuracy"}

RUN = Level(
    keys={**ACCURACY, "knob": "trade_off"},
    values={
        "method": METHODS,
        "trade_off": {"weight": "cost_weight", "shares": "exit_shares", "dial": "alpha"},
    },
    children={"points": Level(keys={"setting": "value"})},
)
EVALUATION = Level(
    keys={**ACCURACY, "plain_seconds": "backbone_seconds", "outlets": "exits"},
    children={
        "exits": Level(
            keys={"accuracy_of_all": "accuracy_if_all_exit"},
            children={"examples": Level(keys={"position": "index", "answer": "predicted"})},
        ),
        "classes": Level(keys={"left": "exit_counts"}),
        "timing": Level(
            keys={"plain_seconds": "backbone_seconds", "plain_slope": "backbone_slope"}
        ),
    },
)
SWEEP = Level(
    keys={**ACCURACY, "outlets": "exits", "outlet_flops": "exit_flops"},
    values={"method": METHODS},
    children={"points": Level(keys={"plain_seconds": "backbone_seconds"})},
)
COMPARISON = Level(
    keys={**ACCURACY, "left_out": "skipped"},
    children={"runs": RUN, "rows": Level(keys=ACCURACY, values={"method": METHODS})},
)
LEVELS = Level(
    keys={"made_of": "fingerprint", "others": "other_runs"},
    children={
        "config": Level(values={"split": SPLITS, "method": METHODS, "gate": GATES}),
        "network": Level(
            keys={"captured": "tracer", "refused": "rejected"},
            children={"latency": Level(keys={"plain": "backbone"})},
        ),
        "images": Level(keys={"answer": "predicted", "right": "correct"}),
        "evaluation": EVALUATION,
        "sweep": SWEEP,
        "comparison": COMPARISON,
        "fingerprint": Level(keys=ACCURACY),
        "other_runs": RUN,
    },
)


def upgrade_record(record: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Return a record in the current schema.

    Args:
        record: a record of schema 1 or 2, which is not changed.
        source: name of the file, for the error message.

    Raises:
        StorageError: the record has another schema.
    """
    schema = record.get("schema")
    if schema == SCHEMA:
        return dict(record)
    if schema != 1:
        raise StorageError(f"'{source}' has schema {schema!r}; expected 1 or {SCHEMA}.")
    upgraded: dict[str, Any] = _upgrade(record, LEVELS)
    return {**upgraded, "schema": SCHEMA}


def _upgrade(value: Any, level: Level) -> Any:
    if isinstance(value, list):
        return [_upgrade(item, level) for item in value]
    if not isinstance(value, Mapping):
        return value
    upgraded = {level.keys.get(key, key): item for key, item in value.items()}
    for key, names in level.values.items():
        if isinstance(upgraded.get(key), str):
            upgraded[key] = names.get(upgraded[key], upgraded[key])
    for key, child in level.children.items():
        if key in upgraded:
            upgraded[key] = _upgrade(upgraded[key], child)
    return upgraded
