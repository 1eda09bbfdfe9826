"""Execution times of real and assumed models. Rule: every figure stands in latency.json beside its
source; this file only reads it.

Sourced tables are averages that vendors and papers published; what nobody published is marked
"assumed" or "recalled". Real curves are flat, then linear, so tables are kept as tables.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from tritonsched.sim.world import ExecNs, affine, table

MS = 1_000_000


@cache
def _data() -> Mapping[str, Any]:
    text = files("tritonsched.sim").joinpath("latency.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def exec_ns(name: str) -> ExecNs:
    """The table or the curve of that name."""
    data = _data()
    if name in data["tables_ms"]:
        points = data["tables_ms"][name]["ms"]
        return table({int(rows): round(ms * MS) for rows, ms in points.items()})
    curve = data["curves_ms"][name]
    return affine(round(curve["base"] * MS), round(curve["row"] * MS))


def ratio(name: str) -> float:
    """How much longer the same model takes on another device."""
    factor: float = _data()["ratios"][name]["factor"]
    return factor


def accuracy(name: str) -> float:
    """Share of right answers of a model, in (0, 1]."""
    value: float = _data()["accuracy"][name]["value"]
    return value


def scaled(times: ExecNs, factor: float) -> ExecNs:
    """The same curve, slower or faster."""

    def scaled_ns(rows: int) -> int:
        return round(times(rows) * factor)

    return scaled_ns


def cost_ns(times: ExecNs, rows_max: int, limit_ns: int) -> float:
    """Device time a row at best: min of exec/rows over the sizes that take at most `limit_ns`.

    inf if not even one row fits.
    """
    fits = [times(b) / b for b in range(1, rows_max + 1) if times(b) <= limit_ns]
    return min(fits, default=float("inf"))
