"""`check` and `schema`: exit codes, formats, and what a live Triton adds."""

import json
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2 as pb
from typer.testing import CliRunner, Result

from tests.unit.profiling.profiles import point, profile, times
from tritonsched import checking
from tritonsched.backend.control import Control
from tritonsched.checking import Times, against_triton
from tritonsched.cli import app
from tritonsched.config.load import parse_with_places
from tritonsched.config.schema import PolicyFile
from tritonsched.errors import TritonUnavailable
from tritonsched.profiling.text import profile_text
from tritonsched.tensors import GrpcReply

MS = 1_000_000
POLICY = """\
classes:
  gold: {deadline_ms: 8}
models:
  clasify: {}
  mlp: {default_class: gold}
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments])


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text("clases: {}\nlimits: {queue_requests_max: 0}\n")
    return path


def test_a_good_file_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (0, f"{path}: good\n")
    assert run(str(path), "--format", "json").stdout == "[]\n"
    assert run(str(path), "--format", "github").stdout == ""


def test_all_faults_are_told_and_the_exit_code_is_2(bad: Path) -> None:
    result = run(str(bad))
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        f"{bad}:1:1: clases: unknown key; did you mean 'classes'?",
        f"{bad}:2:30: limits.queue_requests_max: Input should be greater than or equal to 1",
    ]


def test_the_other_formats_are_for_machines(bad: Path) -> None:
    assert [f["line"] for f in json.loads(run(str(bad), "--format", "json").stdout)] == [1, 2]
    assert run(str(bad), "--format", "github").stdout.count("::error file=") == 2


def test_a_file_that_is_not_there_is_a_fault_too(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    result = run(str(path))
    assert (result.exit_code, result.stdout) == (
        2,
        f"{path}:1:1: cannot be read: No such file or directory\n",
    )


def test_a_triton_that_is_away_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: str) -> tuple[frozenset[str], Times]:
        raise TritonUnavailable("Triton at h:1 does not answer", retry_after_ns=1)

    monkeypatch.setattr(checking, "_asked", away)
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    result = run(str(path), "--triton-grpc", "h:1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not answer" in result.stderr


def test_unknown_models_and_deadlines_that_nothing_can_meet_are_told() -> None:
    policy, places = parse_with_places(POLICY, "p.yaml")
    models = frozenset({"classify", "mlp", "echo"})
    known = {"mlp": {1: 16 * MS, 4: 20 * MS}, "echo": {1: 100 * MS}}
    faults = list(against_triton(policy, places, models, known))
    assert [(f.line, f.column, f.path) for f in faults] == [
        (4, 3, "models.clasify"),
        (2, 23, "classes.gold.deadline_ms"),
    ]
    assert "did you mean 'classify'" in faults[0].message
    assert "8 ms < best time of mlp at 1 row, 16 ms: no request of this class" in faults[1].message


def test_a_deadline_that_the_fastest_batch_meets_is_no_fault() -> None:
    policy, places = parse_with_places(POLICY.replace("clasify", "echo"), "p.yaml")
    known = {"mlp": {1: 16 * MS, 2: 8 * MS}}
    assert not list(against_triton(policy, places, frozenset({"mlp", "echo"}), known))


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    """A policy file beside a profile in which `mlp` takes at least 16 ms."""
    text = profile_text(profile(mlp=times(point(1, 16.0), point(4, 20.0))))
    (tmp_path / "profile.yaml").write_text(text)
    path = tmp_path / "p.yaml"
    path.write_text(POLICY + "profile: profile.yaml\n")
    return path


def test_a_deadline_below_what_the_profile_says_is_told(gold: Path) -> None:
    result = run(str(gold))
    assert (result.exit_code, result.stdout) == (
        2,
        f"{gold}:2:23: classes.gold.deadline_ms: 8 ms < best time of mlp at 1 row, 16 ms: "
        "no request of this class can be met\n",
    )


def test_a_given_profile_goes_before_the_files_own(gold: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(profile_text(profile(mlp=times(point(1, 8.0)))))
    assert run(str(gold), "--profile", str(other)).exit_code == 0


def test_what_profile_and_triton_both_say_is_told_once(
    gold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(_: str) -> tuple[frozenset[str], Times]:
        return frozenset({"mlp", "clasify"}), {"mlp": {1: 17 * MS}}

    monkeypatch.setattr(checking, "_asked", asked)
    assert len(run(str(gold), "--triton-grpc", "h:1").stdout.splitlines()) == 1


def test_the_faults_of_a_profile_are_told_under_its_own_name(gold: Path) -> None:
    beside = gold.parent / "profile.yaml"
    beside.write_text(beside.read_text().replace("p50_ms: 16.000", "p50_ms: .nan"))
    result = run(str(gold))
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{beside}:21:27: models.mlp.points.0.p50_ms: Input should be")
    assert json.loads(run(str(gold), "--format", "json").stdout)[0]["file"] == str(beside)
    beside.unlink()
    text = f"{beside}:1:1: cannot be read: No such file or directory\n"
    assert run(str(gold)).stdout == text


class Statistics:
    """A gRPC port that knows one answer."""

    async def unary(self, method: str, message: bytes) -> GrpcReply:
        answer = pb.ModelStatisticsResponse()
        model = answer.model_stats.add(name="mlp")
        for rows, count, total_ns in ((1, 4, 40), (8, 0, 0)):
            batch = model.batch_stats.add(batch_size=rows)
            batch.compute_infer.count = count
            batch.compute_infer.ns = total_ns
        return GrpcReply("OK", "", answer.SerializeToString())


async def test_the_times_are_tritons_own_means_of_what_ran() -> None:
    control = Control(Statistics())  # type: ignore[arg-type]  # one method is enough
    assert await control.batch_times_ns() == {"mlp": {1: 10}}


def test_the_schema_describes_every_key_with_bounds() -> None:
    result = CliRunner().invoke(app, ["schema"])
    made = json.loads(result.stdout)
    assert set(made["properties"]) == set(PolicyFile.model_fields)
    for section in made["$defs"].values():
        for name, key in section["properties"].items():
            assert key.get("description"), name
