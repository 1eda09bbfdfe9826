"""The systemd unit, judged by systemd's own tools. No service manager has to run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from tests.deploy.compose import ROOT
from tritonsched.cli import app

UNIT = ROOT / "deploy" / "systemd" / "tritonsched.service"
INSTALLED = "/opt/tritonsched/bin/tritonsched"
# Of 10, by `systemd-analyze security`; a service without any confinement has 9.6.
EXPOSURE_MAX = 2.0


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    assert tool, "no systemd-analyze in PATH; apt install --no-install-recommends systemd"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def settings() -> list[tuple[str, str]]:
    """(key, value) of the section Service in order; keys may stand several times."""
    lines = UNIT.read_text().partition("[Service]\n")[2].partition("\n[")[0].splitlines()
    return [(key, value) for key, eq, value in (line.partition("=") for line in lines)
            if eq and not key.startswith("#")]  # fmt: skip


def option_default(name: str) -> object:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # a group
    (default,) = [option.default for option in serve.params if option.name == name]
    return default


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with this environment's program for the installed one, which must exist."""
    path = tmp_path / UNIT.name
    program = Path(sys.executable).with_name("tritonsched")
    path.write_text(UNIT.read_text().replace(INSTALLED, str(program)))
    return path


def test_systemd_takes_the_unit_without_a_word(unit: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_a_mistyped_key(unit: Path) -> None:
    """The tool is real: one letter less and it speaks."""
    unit.write_text(unit.read_text().replace("MemoryMax=", "MemoyMax="))
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert "MemoyMax" in done.stderr


def test_the_service_is_confined(unit: Path) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found.group(1)) <= EXPOSURE_MAX


def test_its_variables_are_options_of_serve() -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]  # a group
    known = {option.envvar for option in serve.params}
    named = {value.partition("=")[0] for key, value in settings() if key == "Environment"}
    assert named
    assert named <= known


def test_stopping_reloading_and_failing_are_told_as_the_program_understands_them() -> None:
    given = dict(settings())
    assert int(given["TimeoutStopSec"]) > float(str(option_default("drain_s")))
    assert given["KillSignal"] == "SIGTERM"
    assert given["ExecReload"].endswith("kill -HUP $MAINPID")
    assert given["RestartPreventExitStatus"] == "2"  # wrong use, by the head of cli.py
    assert given["ExecStart"] == f"{INSTALLED} serve"
