"""Export: learnt values go back into the policy file, and nothing else in it moves."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tritonsched.cli import app
from tritonsched.config.load import parse_policy
from tritonsched.exporting import KEYS, exported

POLICY = """\
# yaml-language-server: $schema=policy.schema.json
# Cameras at the gate; ask Ines before changing.
classes:
  gold: {deadline_ms: 30, weight: 2.0}   # the barrier
  silver:
    deadline_ms: 100

default_class: "silver"
scheduler:
  policy: fcfs   # on purpose
  window_ms: 2   # guessed
feedback:
  knobs:
    - window
    - safety
"""
MS = 1_000_000


def knobs(**values: float) -> dict[str, dict[str, Any]]:
    """These are active, with these values; the others are not."""
    return {knob: {"value": values.get(knob, 7), "active": knob in values} for knob in KEYS}


def test_comments_order_and_form_stay() -> None:
    text, lines = exported(POLICY, knobs(window=3_456_789, safety=1.25))
    assert lines == ["scheduler.safety 1.0→1.25", "scheduler.window_ms 2.0→3.457"]
    expected = POLICY.replace("window_ms: 2   # guessed", "window_ms: 3.457 # guessed")
    before, after = expected.splitlines(), text.splitlines()
    after.remove("  safety: 1.25")
    assert [line.split("#")[0].rstrip() for line in after] == [
        line.split("#")[0].rstrip() for line in before
    ]
    assert [line.partition("#")[2] for line in after] == [line.partition("#")[2] for line in before]
    assert parse_policy(text).tuning().window_ns == 3_457_000


def test_only_active_knobs_are_written() -> None:
    text, lines = exported(POLICY, knobs(rows=24))
    assert lines == ["scheduler.rows_max 0→24"]
    assert text == POLICY.replace("# guessed\n", "# guessed\n  rows_max: 24\n")


def test_every_knob_has_its_key() -> None:
    values = {"safety": 1.5, "window": MS, "rows": 8, "queue": 70, "guard": 2 * MS, "reply": 3 * MS}
    text, _ = exported("", knobs(**values))
    tuning = parse_policy(text).tuning()
    assert (tuning.safety, tuning.window_ns, tuning.rows_cap) == (1.5, MS, 8)
    assert (tuning.queue_requests_max, tuning.guard_ns, tuning.reply_ns) == (70, 2 * MS, 3 * MS)


@pytest.mark.parametrize(
    "text",
    [
        "# nothing but a word\n",
        "scheduler: {policy: edf}  # flow\n",
        "models: {}\n",
    ],
)
def test_a_file_without_the_section_gets_it_and_keeps_its_words(text: str) -> None:
    made, lines = exported(text, knobs(safety=2))
    assert lines == ["scheduler.safety 1.0→2.0"]
    assert parse_policy(made).scheduler.safety == 2
    assert text.partition("#")[2].strip() in made


def test_lists_keep_their_indentation() -> None:
    for text in (POLICY, POLICY.replace("    - ", "  - ")):
        made, _ = exported(text, knobs(rows=9))
        assert made == text.replace("# guessed\n", "# guessed\n  rows_max: 9\n")


def test_what_is_there_already_is_not_written() -> None:
    assert exported(POLICY, knobs(window=2 * MS, safety=1)) == (POLICY, [])


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def admin() -> Iterator[str]:
    """A sidecar's admin port that wants a token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_known = self.headers.get("Authorization") == "Bearer secret"
            body = json.dumps({"knobs": knobs(safety=1.25)}) if is_known else '{"error": "token"}'
            self.send_response(200 if is_known else 403)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> tuple[int, str]:
    made = CliRunner().invoke(app, ["tuning", "export", *arguments])
    return made.exit_code, made.output


def test_the_command_writes_the_file_and_says_what(admin: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    asked = ("--admin", admin, "--admin-token", "secret", str(link))
    assert run(*asked) == (0, f"{link}: scheduler.safety 1.0→1.25\n")
    assert parse_policy(path.read_text()).scheduler.safety == 1.25
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert run(*asked) == (0, f"{link}: nothing to write: the file has these values already\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.yaml", "policy.yaml"]


def test_a_file_with_faults_is_told_and_left(admin: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("scheduler: {windw_ms: 3}\n")
    code, output = run("--admin", admin, "--admin-token", "secret", str(path))
    assert code == 2
    assert ":1:13: scheduler.windw_ms: unknown key" in output
    assert path.read_text() == "scheduler: {windw_ms: 3}\n"


def test_a_file_that_cannot_be_replaced_is_told(
    admin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, output = run("--admin", admin, "--admin-token", "secret", str(path))
    assert (code, "No space left on device" in output) == (2, True)
    assert path.read_text() == POLICY
    assert [p.name for p in tmp_path.iterdir()] == ["policy.yaml"]


def test_without_the_token_or_without_a_sidecar_it_ends_with_one(
    admin: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    code, output = run("--admin", admin, str(path))
    assert (code, "403" in output) == (1, True)
    code, output = run("--admin", "127.0.0.1:1", str(path))
    assert (code, "no sidecar's answer from 127.0.0.1:1" in output) == (1, True)
