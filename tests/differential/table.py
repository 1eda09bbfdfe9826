"""The whole table, by name."""

from typing import Any

from tests.differential import (
    examples,
    grpc_cases,
    http_control,
    http_framing,
    http_infer,
    http_json,
)
from tests.differential.conftest import Case

TABLES: dict[str, dict[str, Any]] = {
    "routes": http_control.TABLE,
    "framing": http_framing.TABLE,
    "http": http_infer.TABLE,
    "json": http_json.TABLE,
    "grpc": grpc_cases.TABLE,
    "examples": examples.TABLE,
}
TABLE: dict[str, Case] = {
    f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()
}


def told(found: dict[str, str]) -> str:
    """The differences, by case."""
    return "\n".join(f"{name}: {difference}" for name, difference in found.items() if difference)
