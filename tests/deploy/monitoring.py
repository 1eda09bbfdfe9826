"""What deploy/ has for Prometheus and Grafana, read for tests; and Debian's own programs for it.

Rule: a program that is missing is an error with the command to type, never a skip.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "tritonsched.json"
_THRESHOLD: Final = re.compile(r" (==|>|<) [\d.]+$")


def program(name: str) -> str:
    """Path of a program of Debian's package `prometheus`."""
    found = shutil.which(name)
    assert found, f"no {name} in PATH; apt install --no-install-recommends prometheus"
    return found


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules by name."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def measured(alert: dict[str, Any]) -> str:
    """What an alert looks at, without the threshold that keeps it silent."""
    expression, threshold_count = _THRESHOLD.subn("", alert["expr"])
    assert threshold_count == 1, alert["expr"]
    return expression


def dashboard() -> dict[str, Any]:
    found = json.loads(DASHBOARD.read_text())
    assert isinstance(found, dict)
    return found


def queries() -> Iterator[tuple[str, str]]:
    """(title of the panel, expression with Grafana's variables) of every query shown."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def filled(expression: str) -> str:
    """As Grafana sends it when everything is selected."""
    for name in ("instance", "model", "class"):
        expression = expression.replace(f"${name}", ".*")
    expression = expression.replace("$__rate_interval", "1m")
    assert "$" not in expression, expression
    return expression
