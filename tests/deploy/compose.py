"""Compose files as Compose reads them. Rule: only the parts of merging that our files use; what
else one might write is refused, so that a test never judges something other than what runs.
"""

from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
BASE: Final = ROOT / "docker-compose.yml"
CPU: Final = ROOT / "docker-compose.cpu.yml"
RESET: Final = object()  # `key: !reset {}` takes the key away


class Loader(yaml.SafeLoader):
    """YAML with Compose's tag `!reset`."""


Loader.add_constructor("!reset", lambda loader, node: RESET)


def load(*paths: Path) -> dict[str, Any]:
    """The files merged in order, later over earlier. Raises TypeError for lists in both."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, yaml.load(path.read_text(), Loader))
    return merged


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if value is RESET:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merge(merged.get(key, {}), value)
        elif isinstance(value, list) and key in merged:
            raise TypeError(f"{key}: lists of two files; Compose appends most and replaces some")
        else:
            merged[key] = value
    return merged
