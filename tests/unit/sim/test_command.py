"""`tritonsched simulate`: its table, its files, and its refusals."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tritonsched.cli import app

SMALL = ["--workload", "W14", "--rules", "lite,edf", "--seeds", "2", "--requests", "300"]


def simulate(*words: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *words], env={"COLUMNS": "100"})


def test_the_table_has_a_line_a_rule() -> None:
    result = simulate(*SMALL, "--loads", "0.3,0.5")
    assert result.exit_code == 0
    lines = [line.split()[:3] for line in result.stdout.splitlines() if line.startswith(" W14")]
    assert lines == [
        ["W14", "0.3", "lite"], ["W14", "0.3", "edf"], ["W14", "0.5", "lite"], ["W14", "0.5", "edf"]
    ]  # fmt: skip


def test_several_workloads_are_a_table_of_values_with_their_mean() -> None:
    result = simulate(*SMALL, "--workload", "W14,W3", "--seeds", "1")
    starts = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert {"W14", "W3", "mean"} <= set(starts)
    cells = [cell for line in result.stdout.splitlines() for cell in line.split("/")[1:]]
    assert "the tenant" in result.stdout
    assert len(cells) >= 4  # two workloads, two rules: value / worst tenant


def test_json_goes_to_standard_output_alone_or_to_a_file_with_the_page(tmp_path: Path) -> None:
    rows = json.loads(simulate(*SMALL, "--json", "-").stdout)
    assert [(row["rule"], row["load"]) for row in rows] == [("lite", 0.25), ("edf", 0.25)]
    assert 0 < rows[0]["mean"]["value"] <= 1
    assert rows[0]["half_interval_95"]["value"] >= 0
    out, page = tmp_path / "rows.json", tmp_path / "page.html"
    assert simulate(*SMALL, "--json", str(out), "--html", str(page)).exit_code == 0
    assert json.loads(out.read_text()) == rows
    assert page.read_text().startswith("<!doctype html>")


def test_a_round_trip_is_part_of_the_world() -> None:
    values = [
        json.loads(simulate(*SMALL, "--rtt-ms", rtt, "--json", "-").stdout)[0]["mean"]["value"]
        for rtt in ("0", "1")
    ]
    assert values[0] > values[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workload", "W99"], "W99 is unknown; use W1"),
        (["--rules", "magic"], "magic is unknown; use"),
        (["--rules", ","], "nothing is unknown"),
        (["--loads", "1,x"], "--loads: '1,x' is not numbers"),
        (["--loads", "0"], "--loads: '0' is not numbers"),
        ([*SMALL, "--html", "no/such/place.html"], "cannot write no/such/place.html"),
    ],
)
def test_wrong_use_is_told_in_one_line(words: list[str], said: str) -> None:
    result = simulate(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
