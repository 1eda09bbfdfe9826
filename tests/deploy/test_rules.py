"""Prometheus' own judgement of its configuration and of the alert rules."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.monitoring import PROMETHEUS, alerts, measured, program
from tritonsched.metrics import COUNTERS, GAUGES, HISTOGRAMS, RELOAD_OUTCOMES
from tritonsched.proxy.reload import APPLIED, REFUSED, ROLLED_BACK


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\btritonsched_\w+", expression))


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should() -> None:
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_shown_to_fire_and_to_keep_silent() -> None:
    shown: dict[str, set[bool]] = {name: set() for name in alerts()}
    for case in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]:
        for look in case["alert_rule_test"]:
            shown[look["alertname"]].add(bool(look["exp_alerts"]))
    assert all(seen == {True, False} for seen in shown.values()), shown


def test_a_rule_that_never_fires_is_found(tmp_path: Path) -> None:
    """The tool is real: with a threshold raised, the same test no longer passes."""
    rules = (PROMETHEUS / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(rules.replace(" > 0.1\n", " > 0.9\n"))
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", str(tmp_path / "rules_test.yml"))
    assert done.returncode == 1
    assert "TritonschedOverload" in done.stdout + done.stderr


@pytest.mark.parametrize("name", alerts())
def test_an_alert_looks_at_metrics_that_exist_and_says_what_to_do(name: str) -> None:
    alert = alerts()[name]
    known = {f"tritonsched_{metric}" for metric in (*COUNTERS, *GAUGES)}
    for metric in HISTOGRAMS:
        known |= {f"tritonsched_{metric}_{end}" for end in ("bucket", "sum", "count")}
    assert names_in(measured(alert)) <= known
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(alert["annotations"]) == {"summary", "description"}


def test_reloads_are_counted_from_the_start_by_the_outcomes_that_there_are() -> None:
    """Else the first refused policy file would be no increase and nobody would be told."""
    assert set(RELOAD_OUTCOMES) == {APPLIED, REFUSED, ROLLED_BACK}
