"""`tritonsched bench` against a real sidecar and a real Triton, on both protocols."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.integration.sidecars import grpc_url, http_url
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.bench.clients import TargetError
from tritonsched.bench.load import BenchOptions, run
from tritonsched.bench.plan import Arrivals, DeadlineAs, LoadClass
from tritonsched.bench.report import table
from tritonsched.cli import app
from tritonsched.sidecar import Sidecar
from tritonsched.tensors import Wire

GENEROUS = LoadClass("generous", 0.5, 60_000.0)
IMPOSSIBLE = LoadClass("impossible", 0.5, 0.001)


def options(target: str, protocol: str, **fields: Any) -> BenchOptions:
    given: dict[str, Any] = {
        "model": "echo", "rate": 200.0, "duration_s": 0.5, "warmup_s": 0.1,
        "classes": (GENEROUS, IMPOSSIBLE), "shapes": (("INPUT", (4,)),),
    }  # fmt: skip
    return BenchOptions(target=target, protocol=Wire(protocol), **(given | fields))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_answers_and_refusals_are_counted_by_class_and_add_up(
    sidecar: Sidecar, protocol: str
) -> None:
    target = grpc_url(sidecar) if protocol == "grpc" else http_url(sidecar)
    seen: list[tuple[int, int]] = []
    result = await run(options(target, protocol), lambda done, total: seen.append((done, total)))
    good, bad = result["classes"]["generous"], result["classes"]["impossible"]
    assert good["served"] == good["sent"] > 0
    assert sum(bad["refused"].values()) == bad["sent"] > 0
    assert set(bad["refused"]) <= {"deadline-unreachable", "deadline-expired"}
    assert result["goodput_per_s"] == good["served"] / 0.5
    assert seen[-1][0] == seen[-1][1]
    assert json.loads(json.dumps(result)) is not None
    assert table(result).row_count == 2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_the_same_load_goes_straight_at_triton(triton: EmbeddedTriton, protocol: str) -> None:
    """Raw Triton knows no deadlines: late answers are seen and counted late."""
    target = triton.grpc_address if protocol == "grpc" else triton.http_address
    made = options(target, protocol, deadline_as=DeadlineAs.TIMEOUT, arrivals=Arrivals.CONSTANT)
    result = await run(made)
    bad = result["classes"]["impossible"]
    assert bad["late"] == bad["sent"] > 0


async def test_a_deadline_as_the_calls_own_ends_at_the_client_or_the_sidecar(
    sidecar: Sidecar,
) -> None:
    """Never answered in time, and never called a failure."""
    result = await run(options(grpc_url(sidecar), "grpc", deadline_as=DeadlineAs.GRPC))
    good, bad = result["classes"]["generous"], result["classes"]["impossible"]
    assert good["served"] == good["sent"] > 0
    assert bad["late"] + sum(bad["refused"].values()) == bad["sent"] > 0


async def test_more_than_the_bound_in_flight_is_told_not_dropped_in_silence(
    sidecar: Sidecar,
) -> None:
    made = options(grpc_url(sidecar), "grpc", in_flight_max=1, rate=2000.0, classes=(GENEROUS,))
    result = await run(made)
    count = result["classes"]["generous"]
    assert count["unsent"] > 0
    assert count["sent"] == count["served"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_target_that_is_not_there_and_a_model_that_is_not_are_told(
    sidecar: Sidecar, protocol: str
) -> None:
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:1"):
        await run(options("127.0.0.1:1", protocol))
    target = grpc_url(sidecar) if protocol == "grpc" else http_url(sidecar)
    with pytest.raises(TargetError, match="nobody"):
        await run(options(target, protocol, model="nobody"))


def test_the_command_writes_json_and_refuses_bad_words(tmp_path: Path) -> None:
    runner = CliRunner()
    for words in (
        ["--class", "a:b"],
        ["--shape", "x"],
        ["--target", "127.0.0.1:1"],
    ):
        made = runner.invoke(app, ["bench", *words])
        assert made.exit_code == 2, words
        assert "tritonsched bench:" in made.output


async def test_the_commands_json_file_is_the_result(sidecar: Sidecar, tmp_path: Path) -> None:
    """As a process of its own: the command runs its own event loop."""
    path = tmp_path / "result.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tritonsched", "bench", "--model", "echo", "--shape", "INPUT:4",
        "--target", grpc_url(sidecar), "--rate", "100", "--duration-s", "0.3", "--warmup-s", "0",
        "--class", "a:1:60000", "--json", str(path), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    result = json.loads(path.read_text())
    assert result["classes"]["a"]["served"] == result["classes"]["a"]["sent"]
    assert b"in time" in output
