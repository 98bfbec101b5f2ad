"""Damage to files: of their bytes, and of the values in JSON."""

import copy
import json
import random

VALUES = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "0", "inf", "\ud800", "é", [], {}, [[]], {"x": 1}, [None], [0.9], ["x"]),
    *({"__float__": "inf"}, {"__float__": "x"}, {"name": "never"}, {"name": "max-prob"}),
)
NESTED = "[" * 5000 + "]" * 5000


def mutated_bytes(data: bytes, generator: random.Random) -> bytes:
    """Flipped, missing, inserted, repeated or exchanged bytes."""
    damaged = bytearray(data)
    kind = generator.randrange(6)
    at = generator.randrange(len(damaged))
    if kind == 0:
        damaged[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del damaged[at:]
    elif kind == 2:
        damaged[at:at] = bytes(generator.randrange(256) for _ in range(3))
    elif kind == 3:
        del damaged[at : at + generator.randrange(1, 40)]
    elif kind == 4:
        other = generator.randrange(len(damaged))
        damaged[at], damaged[other] = damaged[other], damaged[at]
    else:
        damaged[at : at + 8] = damaged[at : at + 8] * 2
    return bytes(damaged)


def mutated_text(text: str, generator: random.Random) -> bytes:
    """The same text in another encoding, twice, or with what JSON parsers differ on."""
    forms = (
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: b"",
        lambda: (text + text).encode(),
        lambda: text.encode() + b"\0",
        lambda: text.replace(" 1,", " 1e999,").encode(),
        lambda: text.replace(" 1,", f" {'9' * 5000},").encode(),
        lambda: text.replace("null", NESTED, 1).encode(),
        lambda: NESTED.encode(),
        lambda: text.replace("true", "True").encode(),
        lambda: text.replace("false", "0").encode(),
        lambda: text.replace("{", '{"schema": 2, ', 1).encode(),
        lambda: text.replace("{", '{"policy": {"name": "never"}, ', 1).encode(),
        lambda: text.replace('"', "'").encode(),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: json.dumps(json.loads(text), sort_keys=True).encode(),
    )
    return generator.choice(forms)()


def mutated_values(content: object, generator: random.Random) -> str:
    """JSON in which one value was deleted, retyped, moved, repeated or nested."""
    changed = copy.deepcopy(content)
    parents = []

    def collect(value):
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        for key in keys:
            parents.append((value, key))
            if isinstance(value[key], (dict, list)) and value[key]:
                collect(value[key])

    collect(changed)
    parent, key = generator.choice(parents)
    kind = generator.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind == 1:
        parent[f"{key}x"] = parent.pop(key)
    elif kind == 2:
        other, name = generator.choice(parents)
        parent[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else other[name])
    elif kind == 3 and isinstance(parent[key], (int, float)):
        parent[key] = generator.choice((parent[key] + 1, -parent[key], parent[key] * 1.5))
    elif kind == 4:
        parent[key] = [parent[key]] if generator.random() < 0.5 else {"x": parent[key]}
    else:
        parent[key] = generator.choice(VALUES)
    return json.dumps(changed)
