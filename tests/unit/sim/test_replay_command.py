"""`tritonsched replay`: its table, page and JSON, what it warns of, and its refusals."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.proxy.recordings import S, arrivals, record
from tritonsched.cli import app
from tritonsched.sim.replay import Agreement
from tritonsched.sim.replay_command import POLICIES_MAX, in_words

WIDE = (
    "classes: {gold: {deadline_ms: 80, weight: 4}, free: {deadline_ms: 200}}\ndefault_class: free\n"
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "r.jsonl"
    record(path, arrivals(duration_ns=2 * S))
    return path


@pytest.fixture(scope="module")
def wide(recording: Path) -> Path:
    path = recording.parent / "wide.yaml"
    path.write_text(WIDE)
    return path


def replay(*words: object) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, words)], env={"COLUMNS": "160"})


def test_the_table_has_recorded_old_and_new_for_each_class_and_for_all(
    recording: Path, wide: Path
) -> None:
    result = replay(recording, "--policy", wide)
    assert result.exit_code == 0
    starts = [tuple(line.split()[:2]) for line in result.stdout.splitlines() if "%" in line]
    runs = ["recorded", "old", str(wide)]
    assert starts[:9] == [(name, run) for name in ("free", "gold", "all") for run in runs]
    assert "100.0% of" in result.stdout
    assert result.stderr == ""


def test_json_goes_to_standard_output_alone_and_has_the_figures(
    recording: Path, wide: Path
) -> None:
    made = json.loads(replay(recording, "--policy", wide, "--json", "-").stdout)
    real, old, new = made["runs"]
    assert made["agreement"]["same_end"] == 1.0
    assert real["all"] == old["all"]
    assert new["all"]["refused_ratio"] < old["all"]["refused_ratio"]
    assert sum(old["all"]["reasons"].values()) > 0
    assert old["busy"] <= new["busy"] <= 1


def test_the_page_needs_nothing_else_and_names_are_no_markup(
    recording: Path, tmp_path: Path
) -> None:
    policy, out = tmp_path / "<b>.yaml", tmp_path / "out.html"
    policy.write_text(WIDE)
    assert replay(recording, "--policy", policy, "--html", out).exit_code == 0
    text = out.read_text()
    assert text.count("<svg") == 2
    assert text.count("<polyline") == 6
    assert "<b>" not in text
    assert str(policy) in unescape(text)
    assert not re.search(r"(src|href)=|url\(|https?://(?!www\.w3\.org)", text)


def test_bad_lines_are_told_and_the_rest_is_replayed(recording: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    raw = recording.read_bytes()
    cut.write_bytes(raw[: len(raw) // 2] + b"\nrubbish\n" + raw[len(raw) // 2 : -9])
    result = replay(cut)
    assert result.exit_code == 0
    assert f"{cut}: 4 lines could not be used; the rest is replayed" in result.stderr
    assert result.stderr.count(": no JSON") == 3
    assert "cut off" in result.stderr


def test_a_replay_that_is_far_off_says_so() -> None:
    assert "compare with 'old'" in in_words(Agreement(100, 0.9, (0.95, 0.90)))
    assert "compare" not in in_words(Agreement(100, 0.9, (0.95, 0.94)))


def test_what_cannot_be_replayed_is_refused(recording: Path, wide: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("clases: {}\n")
    for words, said in (
        ([wide], "is no recording; `serve --record FILE` makes one"),
        ([recording, "--policy", bad], f"{bad}:1:1: clases: unknown key"),
        ([recording, "--html", tmp_path / "no" / "x"], "cannot write"),
        ([recording, *["--policy", wide] * (POLICIES_MAX + 1)], f"at most {POLICIES_MAX} are"),
    ):
        result = replay(*words)
        assert result.exit_code == 2, words
        assert said in result.stderr


def test_a_recording_without_any_executed_batch_is_refused(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = recording.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"complete"' not in line))
    result = replay(path)
    assert result.exit_code == 2
    assert "nothing can be replayed" in result.stderr
