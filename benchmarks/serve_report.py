"""Results of the serving benchmark from its finished measurements."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leenet_fx.environment import environment
from leenet_fx.report.results import Criterion, Result

COMMAND = "python benchmarks/serve.py --data PATH --weights PATH"
LIMIT = 10
WITHIN = 0.15
NETWORKS = ("resnet18", "lite0")
LOADS = 8
"""Number of loads of a network that is measured to the end."""


def report(done: Mapping[str, Any], path: Path) -> None:
    """Write the results; committed ones that were not measured again are kept.

    Args:
        done: finished measurements by key.
        path: of the JSON file.
    """
    rows: list[dict[str, Any]] = []
    criteria: list[Criterion] = []
    for name in NETWORKS:
        rows += _loads(name, done)
        criteria += _throughput(name, done)
    for part in (_kill, _malformed, _soak):
        part(done, rows, criteria)
    for name in NETWORKS:
        _simulated(name, done, rows, criteria)
    stored = json.loads(path.read_text()) if path.exists() else {"rows": [], "criteria": []}
    measured = {_subject(row["part"]) for row in rows}
    rows = [row for row in stored["rows"] if _subject(row["part"]) not in measured] + rows
    kept = [one for one in stored["criteria"] if _subject(one["name"]) not in measured]
    criteria = [Criterion(**one) for one in kept] + criteria
    Result(COMMAND, rows, criteria, environment()).write(path, "Serving on Ray Serve", _table(rows))


def _subject(text: str) -> str:
    """Return what a row or a criterion is of, from its name."""
    for subject in ("killed", "malformed", "soak"):
        if subject in text:
            return subject
    name = next(name for name in NETWORKS if name in text)
    return f"simulation of {name}" if "simulat" in text else name


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    hidden = ("memory", "by exit", "statuses", "used", "errors")
    return [{key: value for key, value in row.items() if key not in hidden} for row in rows]


def _measured(name: str, kind: str, done: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    start = f"{name}/{kind}/"
    return {float(k.rpartition("/")[2]): v for k, v in done.items() if k.startswith(start)}


def _ms(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}, ms": 1000 * row[name] for name in ("p50", "p95", "p99")}


def _loads(name: str, done: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for kind in ("backbone", "exits"):
        for row in _measured(name, kind, done).values():
            used = row["used"]
            busy = used["others"] / used["seconds"]
            rows.append(
                {
                    "part": f"{name}, {kind}",
                    "requests/s": row["rate"],
                    **_ms(row),
                    "answered/s": row["throughput"],
                    "not answered": row["count"] - row["answered"],
                    "cores used by other programs": busy,
                    "load average": row["load average"],
                    "statuses": row["statuses"],
                    "by exit": row["by exit"],
                }
            )
    return rows


def _throughput(name: str, done: Mapping[str, Any]) -> list[Criterion]:
    costs = done.get(f"{name}/costs")
    found = {kind: _measured(name, kind, done) for kind in ("backbone", "exits")}
    if costs is None or min(map(len, found.values())) < LOADS:
        return []
    limit = LIMIT * costs["backbone, alone"]
    best = {
        kind: max(
            (r["throughput"] for r in rows.values() if r["p95"] <= limit and _all(r)), default=0.0
        )
        for kind, rows in found.items()
    }
    held = [
        share
        for share, row in found["backbone"].items()
        if row["p95"] <= limit and _all(row) and share in found["exits"]
    ]
    wanted = 0.9 / costs["relative"]
    ratio = best["exits"] / best["backbone"] if best["backbone"] else float("nan")
    label = f"{name}: throughput at p95 ≤ {1000 * limit:.0f} ms"
    criteria = [
        Criterion(f"{label}, backbone", best["backbone"], "images/s", "–", True),
        Criterion(f"{label}, with exits", best["exits"], "images/s", "–", True),
        Criterion(f"{label}, ratio", ratio, "×", f"≥ {wanted:.2f}", ratio >= wanted),
    ]
    last = max(found["exits"])
    most = [found[kind][last]["throughput"] for kind in ("exits", "backbone")]
    label = f"{name}: throughput at {found['exits'][last]['rate']:.1f} requests/s, ratio"
    ratio = most[0] / most[1]
    criteria.append(Criterion(label, ratio, "×", f"≥ {wanted:.2f}", ratio >= wanted))
    if held:
        share = max(held)
        base, own = found["backbone"][share], found["exits"][share]
        text = f"{name}, {base['rate']:.1f} requests/s"
        p50, p99 = own["p50"] / base["p50"], own["p99"] / base["p99"]
        criteria += [
            Criterion(f"{text}: p50, exits over backbone", p50, "×", "< 1", p50 < 1),
            Criterion(f"{text}: p99, exits over backbone", p99, "×", "≤ 1.1", p99 <= 1.1),
        ]
    return criteria


def _all(row: Mapping[str, Any]) -> bool:
    return bool(row["answered"] == row["count"])


def _kill(done: Mapping[str, Any], rows: list[Any], criteria: list[Criterion]) -> None:
    row = done.get("kill")
    if row is None:
        return
    rows.append(
        {
            "part": f"{len(row['killed'])} replicas killed",
            "requests/s": row["rate"],
            **_ms(row),
            "answered/s": row["throughput"],
            "not answered": row["count"] - row["answered"],
            "load average": row["load average"],
            "statuses": row["statuses"],
        }
    )
    refused = row["statuses"].get("503", 0)
    lost = row["count"] - row["answered"] - refused
    wrong = row["answered"] - min(row["same class"], row["same exit"])
    text = f"{row['count']} requests, {len(row['killed'])} replicas killed"
    criteria += [
        Criterion(f"{text}: accepted requests without an answer", lost, "", "0", lost == 0),
        Criterion(f"{text}: answers other than predict's", wrong, "", "0", wrong == 0),
    ]


def _malformed(done: Mapping[str, Any], rows: list[Any], criteria: list[Criterion]) -> None:
    row = done.get("malformed")
    if row is None:
        return
    rows.append({"part": "malformed content", **row})
    failed = sum(n for status, n in row["statuses"].items() if status[0] in "05")
    failed += row["good requests"] - row["good requests answered"] + (not row["server runs"])
    growth = row["memory after, MB"] / row["memory before, MB"] - 1
    text = f"{row['count']} malformed inputs"
    criteria += [
        Criterion(f"{text}: failures of the server", failed, "", "0", failed == 0),
        Criterion(f"{text}: growth of its memory", 100 * growth, "%", "≤ 2", growth <= 0.02),
    ]


def _soak(done: Mapping[str, Any], rows: list[Any], criteria: list[Criterion]) -> None:
    row = done.get("soak")
    if row is None:
        return
    samples = row["memory"]
    rows.append(
        {
            "part": "soak",
            "requests/s": row["rate"],
            **_ms(row),
            "answered/s": row["throughput"],
            "not answered": row["count"] - row["answered"],
            "load average": row["load average"],
            "memory": samples[:: max(1, len(samples) // 20)],
        }
    )
    last = samples[-1]["seconds"]
    for name in ("front", "replicas", "ray"):
        early = [s[name] for s in samples if 0.2 * last <= s["seconds"] <= 0.4 * last]
        late = [s[name] for s in samples if s["seconds"] >= 0.8 * last]
        growth = sum(late) / len(late) / (sum(early) / len(early)) - 1
        text = f"soak of {last / 60:.0f} min, memory of '{name}': last fifth over second"
        criteria.append(Criterion(text, 100 * growth, "%", "≤ 3", growth <= 0.03))


def _simulated(
    name: str, done: Mapping[str, Any], rows: list[Any], criteria: list[Criterion]
) -> None:
    for kind in ("backbone", "exits"):
        found = done.get(f"{name}/simulated/{kind}")
        if found is None:
            continue
        for figure in ("p95", "throughput"):
            errors = [abs(r[figure] / r[f"measured {figure}"] - 1) for r in found["rows"]]
            for text, error in (("median", statistics.median(errors)), ("largest", max(errors))):
                name_of = f"simulation of {name}, {kind}: {figure}, {text} difference of loads"
                value = 100 * error
                criteria.append(Criterion(name_of, value, "%", "≤ 15", error <= WITHIN))
        for row in found["rows"]:
            rows.append(
                {
                    "part": f"simulated {name}, {kind}",
                    "requests/s": row["rate"],
                    **_ms(row),
                    "answered/s": row["throughput"],
                    "not answered": row["refused"],
                    "measured p95, ms": 1000 * row["measured p95"],
                    "measured answered/s": row["measured throughput"],
                }
            )
    for row in done.get(f"{name}/scale", []):
        rows.append(
            {
                "part": f"simulated {name}, {row['case']}",
                "requests/s": row["rate"],
                **_ms(row),
                "answered/s": row["throughput"],
                "not answered": row["refused"],
                "replicas": row["replicas"],
                "HTTP processes": row["HTTP processes"],
                "live tensors, MB/s": row["live tensors, MB/s"],
                "replicas lost": row["replicas lost"],
                "begun anew": row["begun anew"],
            }
        )
