"""`tritonsched profile`: options, files and exit codes; the sweep itself is played."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.unit.profiling.profiles import point, profile, times
from tritonsched.cli import app
from tritonsched.config.profile_file import POINTS_MAX, ProfileFile, load_profile
from tritonsched.errors import StartupError
from tritonsched.profiling import command
from tritonsched.profiling.command import ProfileOptions, names_of, sizes_of
from tritonsched.profiling.sweep import Bar, Sweep, Wish

MADE = profile(m=times(point(1, 5.0), point(8, 9.0)))


class Measured:
    """Instead of `measure`: notes the options, returns what it is told to."""

    def __init__(self) -> None:
        self.asked: list[ProfileOptions] = []
        self.sweep = Sweep(models=dict(MADE.models))
        self.error: StartupError | None = None

    async def __call__(
        self, options: ProfileOptions, bar: Bar, say: Any
    ) -> tuple[ProfileFile, Sweep]:
        self.asked.append(options)
        bar.begin(1)
        bar.show("m", 1, 1)
        bar.advance(1)
        if self.error is not None:
            raise self.error
        return MADE, self.sweep


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measured:
    monkeypatch.chdir(tmp_path)
    played = Measured()
    monkeypatch.setattr(command, "measure", played)
    return played


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profile", *arguments])


def test_a_profile_and_its_curves_are_written(measured: Measured, tmp_path: Path) -> None:
    result = run("--out", "p.yaml", "--html", "p.html")
    assert result.exit_code == 0, result.output
    assert load_profile(tmp_path / "p.yaml") == MADE
    assert "<svg" in (tmp_path / "p.html").read_text()
    assert "p.yaml: 1 models" in result.stdout


def test_options_reach_the_sweep(measured: Measured) -> None:
    words = ("--models", "a,b,a", "--rows", "1, 4", "--shape", "a/IN:3,4", "--seed", "7")
    triton = ("--triton-http", "h:1", "--triton-grpc", "h:2", "--transport", "inline")
    assert run(*words, *triton).exit_code == 0
    assert run("--repository", "models").exit_code == 0
    assert run().exit_code == 0
    given, other, bare = measured.asked
    assert given.wish == Wish(("a", "b"), (1, 4), {"a/IN": (3, 4)}, 7)
    assert (given.triton, given.repository) == (("h:1", "h:2"), None)
    assert given.transport == "inline"
    assert (other.triton, other.repository) == (None, Path("models"))
    assert bare.repository == command.REPOSITORY


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--triton-http", "h:1"), "belong together"),
        (("--rows", "1,x"), "is not a list of batch sizes"),
        (("--rows", "0"), "is not a list of batch sizes"),
        (("--rows", "²"), "is not a list of batch sizes"),
        (("--shape", "A"), "is not NAME:DIM,DIM"),
        (("--rows", ",".join(map(str, range(1, POINTS_MAX + 2)))), f"at most {POINTS_MAX}"),
    ],
)
def test_wrong_use_is_told_before_anything_starts(
    measured: Measured, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert not measured.asked


def test_a_model_that_was_not_measured_makes_the_exit_code_1_and_the_rest_is_written(
    measured: Measured, tmp_path: Path
) -> None:
    measured.sweep.failed["x"] = "no weights"
    measured.sweep.skipped["s"] = "a sequence"
    result = run()
    assert result.exit_code == 1
    assert "x: not measured: no weights" in result.output
    assert "s: skipped: a sequence" in result.output
    assert load_profile(tmp_path / "profile.yaml") == MADE


def test_nothing_measured_writes_nothing(measured: Measured, tmp_path: Path) -> None:
    measured.sweep.models.clear()
    assert run("--html", "p.html").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_triton_that_does_not_start_and_a_place_that_cannot_be_written_are_told(
    measured: Measured,
) -> None:
    result = run("--out", "none/p.yaml")
    assert (result.exit_code, "none/p.yaml: cannot be written" in result.output) == (1, True)
    measured.error = StartupError("no room")
    result = run()
    assert (result.exit_code, "tritonsched profile: no room" in result.output) == (1, True)


def test_lists_are_read_as_people_write_them() -> None:
    assert names_of(" a , b,,a") == ("a", "b")
    assert sizes_of("") == ()
    assert sizes_of("8, 1") == (8, 1)


def test_on_a_terminal_the_bar_says_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(command, "_stderr", terminal)
    with command._bar() as bar:
        bar.begin(2)
        bar.show("m[b]", 8, 40)
        bar.advance(1)
    assert "m[b], 8 rows: 40 runs" in shown.getvalue()
    assert "1/2" in shown.getvalue()
