"""`doctor` and `status`: each finding says what was seen, and what to do."""

import asyncio
import json
import os
import resource
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.unit.frontend.test_admin_policy import reloader
from tests.unit.frontend.test_admin_server import View
from tests.unit.frontend.wires import HOST
from tests.unit.proxy.calls import ECHO
from tritonsched import doctor
from tritonsched.backend.cuda import Cuda
from tritonsched.backend.cuda_check import answer
from tritonsched.backend.scripted_cuda import ScriptedCuda
from tritonsched.cli import app
from tritonsched.core import scheduler
from tritonsched.doctor import (
    Finding,
    Health,
    batching,
    embedded_numpy,
    forms,
    server_lines,
    status_lines,
)
from tritonsched.errors import CudaFault
from tritonsched.frontend.admin_server import AdminServer

NOBODY = f"{HOST}:1"  # a port that nothing listens on


def fake(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    )


def test_little_shared_memory_is_advice_with_the_option_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, 32 * 1024 * 1024)
    finding = doctor.shared_memory(tmp_path)
    assert finding.health is Health.ADVICE
    assert "32 MiB free" in finding.text
    assert "shm_size" in finding.text
    fake(monkeypatch, 64 * 1024 * 1024)
    assert doctor.shared_memory(tmp_path).health is Health.GOOD


def test_no_shared_memory_at_all_is_told(tmp_path: Path) -> None:
    assert "No such file" in doctor.shared_memory(tmp_path / "none").text


@pytest.mark.parametrize(
    ("limit", "health"),
    [(1024, Health.ADVICE), (4096, Health.GOOD), (resource.RLIM_INFINITY, Health.GOOD)],
)
def test_few_descriptors_are_advice(
    monkeypatch: pytest.MonkeyPatch, limit: int, health: Health
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert doctor.open_files().health is health


@pytest.mark.parametrize(("step_s", "health"), [(1e-9, Health.GOOD), (0.016, Health.BROKEN)])
def test_a_coarse_clock_is_broken(
    monkeypatch: pytest.MonkeyPatch, step_s: float, health: Health
) -> None:
    monkeypatch.setattr(time, "get_clock_info", lambda _: SimpleNamespace(resolution=step_s))
    assert doctor.clock().health is health


def test_gpus_are_asked_whether_two_processes_may_share_their_memory() -> None:
    cuda = ScriptedCuda(("A", "B"))
    other = cuda.process()
    finding = doctor.gpu_memory(lambda: cuda, lambda question: answer(other, question))
    assert (finding.health, finding.text) == (Health.GOOD, "works between processes on A, B")
    cuda.faults.add("ipc-refused")
    finding = doctor.gpu_memory(lambda: cuda, lambda question: answer(other, question))
    assert finding.health is Health.ADVICE
    assert "gpu:1: another process: cudaIpcOpenMemHandle" in finding.text


def test_a_machine_without_gpus_is_none_the_worse() -> None:
    def nothing() -> Cuda:
        raise CudaFault("no driver")

    finding = doctor.gpu_memory(nothing)
    assert (finding.health, finding.text[:15]) == (Health.GOOD, "none: no driver")


@pytest.mark.parametrize(
    ("version", "health"),
    [("1.26.4", Health.GOOD), ("2.4.6", Health.BROKEN), (None, Health.ADVICE)],
)
def test_numpy_2_in_the_embedded_environment_is_broken(
    tmp_path: Path, version: str | None, health: Health
) -> None:
    if version is not None:
        info = tmp_path / "lib/python3.11/site-packages" / f"numpy-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {version}\n")
    finding = embedded_numpy(tmp_path)
    assert finding.health is health
    assert (version or "no numpy") in finding.text


def test_tritons_own_batching_is_advice_for_models_that_are_merged() -> None:
    on = replace(ECHO, queue_delay_ns=100_000)
    (finding,) = batching([ECHO, on, replace(on, lone_reason="sequence")])
    assert finding.health is Health.ADVICE
    assert "delay 100 µs" in finding.text


def test_a_triton_that_is_away_is_broken_and_ends_with_1(tmp_path: Path) -> None:
    arguments = ["doctor", "--triton-grpc", NOBODY, "--triton-env", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 1
    last = json.loads(result.stdout)[-1]
    assert (last["check"], last["health"]) == ("Triton", "broken")
    assert "broken  Triton: " in CliRunner().invoke(app, arguments).stdout


def test_it_says_whether_this_is_a_compiled_build(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.machine_code().text.startswith("Python")
    monkeypatch.setattr(scheduler, "__file__", "scheduler.cpython-311-x86_64-linux-gnu.so")
    assert doctor.machine_code() == Finding("core and data path", Health.GOOD, "compiled by mypyc")


def test_a_look_ahead_that_is_not_compiled_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.look_ahead().health is Health.GOOD
    monkeypatch.setattr(doctor, "obstacle", lambda: "numba is missing (extra `fast`)")
    found = doctor.look_ahead()
    assert (found.health, found.text.count("numba is missing")) == (Health.ADVICE, 1)


def test_nothing_broken_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "embedded_numpy", lambda _: Finding("x", Health.ADVICE, "y"))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "advice  x: y" in result.stdout


async def test_status_tells_readiness_rule_and_the_last_error() -> None:
    made = reloader("what: 1\n")
    await made.reload()
    server = AdminServer(View(), host=HOST, port=0, reloader=made)
    await server.start()
    try:
        arguments = ["status", "--admin", f"{HOST}:{server.port}"]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    finally:
        await server.stop()
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "ready",
            "policy  generation 1, rule lookahead",
            "error   p.yaml:1:1: what: unknown key",
        ],
    )


def test_status_of_nobody_ends_with_1() -> None:
    result = CliRunner().invoke(app, ["status", "--admin", NOBODY])
    assert result.exit_code == 1
    assert "no sidecar's answer" in result.stderr


def test_status_without_the_right_to_see_the_policy_says_so() -> None:
    assert list(status_lines("ready", {"error": "loopback only"})) == [
        "ready",
        "policy  loopback only",
    ]


def test_status_tells_each_triton() -> None:
    told = [
        {
            "server": "left",
            "state": "up",
            "grpc": "l:1",
            "version": "2.51.0",
            "transport": "system",
        },
        {"server": "", "state": "away", "grpc": "r:1", "version": "", "transport": "inline"},
    ]
    assert list(server_lines(json.dumps({"servers": told}))) == [
        "server  left up, l:1, version 2.51.0, system",
        "server  Triton away, r:1, version unknown, inline",
    ]
    assert list(server_lines("404: Not Found")) == []


def test_models_that_servers_have_in_other_forms_are_advice() -> None:
    other = replace(ECHO, max_batch_size=2)
    (finding,) = forms({"a": [ECHO], "b": [replace(ECHO, devices=("gpu:0",))], "c": [other]})
    assert finding.health is Health.ADVICE
    assert "echo: another form on server 'c' than on 'a'" in finding.text


def test_each_server_of_a_policy_file_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f'servers:\n  one: {{http: "{NOBODY}", grpc: "{NOBODY}"}}\n')
    arguments = ["doctor", "--policy", str(path), "--triton-env", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "broken  Triton 'one': " in result.stdout
    path.write_text("servers: {one: {}}")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "servers.one.http" in result.stderr
