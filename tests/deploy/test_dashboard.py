"""The Grafana dashboard as Grafana reads it. Its queries run on a real Prometheus in
tests/integration/test_monitoring.py.
"""

import itertools
import re
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import DASHBOARD, ROOT, dashboard, filled, queries
from tritonsched.metrics import COUNTERS, GAUGES, HISTOGRAMS

UNITS = {"short", "percentunit", "reqps", "ops", "s", "bytes", "µs"}  # Grafana's own names
COLUMNS = 24


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
    return set(itertools.product(columns, rows))


def test_panels_have_ids_of_their_own_and_lie_side_by_side() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations(panels, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    assert all(column < COLUMNS for panel in panels for column, _ in cells(panel))


def test_every_panel_has_a_title_a_known_unit_and_the_chosen_source() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard()["panels"]:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])


def test_it_can_be_provisioned() -> None:
    """A uid that stays, no id of another Grafana, and a provider that looks where it is mounted."""
    found = dashboard()
    assert found["uid"] == "tritonsched"
    assert "id" not in found
    assert found["schemaVersion"] >= 39
    path = ROOT / "deploy/grafana/provisioning/dashboards/tritonsched.yaml"
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in compose["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"


@pytest.mark.parametrize("title", sorted({title for title, _ in queries()}))
def test_a_query_names_metrics_and_variables_that_exist(title: str) -> None:
    known = {f"tritonsched_{metric}" for metric in (*COUNTERS, *GAUGES)}
    for metric in HISTOGRAMS:
        known |= {f"tritonsched_{metric}_{end}" for end in ("bucket", "sum", "count")}
    for panel, expression in queries():
        if panel == title:
            assert set(re.findall(r"\btritonsched_\w+", expression)) <= known
            assert filled(expression)


def test_what_can_be_chosen_is_asked_of_metrics_that_have_the_label() -> None:
    asked = [v["query"]["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    assert asked == [
        "label_values(tritonsched_ready, instance)",
        "label_values(tritonsched_requests_total, model)",
        "label_values(tritonsched_requests_total, class)",
    ]
    assert {"model", "class"} <= set(COUNTERS["requests_total"][1])
