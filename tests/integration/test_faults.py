"""Faults around the sidecar: Triton dies and returns, the sidecar stops, starts badly, or is
installed alone. Every request is answered exactly once; nothing hangs.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest

from tests.integration.conftest import TritonFactory
from tests.integration.raw_triton import infer_request
from tests.integration.sidecars import grpc_url, http_url, running_sidecar, serve_process
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.prepare import emulated_model_config, write_emulated_model
from tritonsched.backend.upstream_grpc import SERVICE

ROOT = Path(__file__).parents[2]
MESSAGE = infer_request("gpu", {"INPUT": np.ones((1, 3, 32, 32), np.float32)}).SerializeToString()
IN_FLIGHT = 40
PATIENCE_S = 30  # far more than anything here takes; a hang fails the test instead of the run


@pytest.fixture
async def repository(tmp_path: Path) -> Path:
    """One emulated model."""
    config = emulated_model_config("gpu", gpu="g", a_us=5000, b_us=600, with_stats=False)
    write_emulated_model(tmp_path / "models", "gpu", config)
    return tmp_path / "models"


@pytest.fixture
async def own_triton(repository: Path, triton_factory: TritonFactory) -> EmbeddedTriton:
    """A Triton that a test may kill."""
    return await triton_factory(repository)


async def one(infer: Any) -> str:
    """The status of one call; never an exception."""
    try:
        await asyncio.wait_for(infer(MESSAGE), PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


class Load:
    """IN_FLIGHT callers in a closed loop until told to stop; counts every status."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[str] = Counter()
        self._url = url
        self._stop = False
        self._seen = asyncio.Event()

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._url) as channel:
            infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
            await asyncio.gather(*(self._caller(infer) for _ in range(IN_FLIGHT)))

    async def _caller(self, infer: Any) -> None:
        while not self._stop:
            self.statuses[await one(infer)] += 1
            self._seen.set()

    async def until(self, status: str, count: int) -> None:
        """Wait until this many answers of this status are in."""
        async with asyncio.timeout(PATIENCE_S):
            while self.statuses[status] < count:
                self._seen.clear()
                await self._seen.wait()

    def stop(self) -> None:
        self._stop = True


async def test_every_request_is_answered_when_triton_dies_and_service_resumes(
    own_triton: EmbeddedTriton,
) -> None:
    """kill -9 under load: UNAVAILABLE for what it had, 503s while it is away, then OK by itself."""
    async with running_sidecar(own_triton) as sidecar:
        load = Load(grpc_url(sidecar))
        running = asyncio.create_task(load.run())
        await load.until("OK", 100)
        os.kill(own_triton.pid, signal.SIGKILL)
        await load.until("UNAVAILABLE", IN_FLIGHT)
        assert sidecar.why_not_ready() == "Triton is not answering"
        await own_triton.restart()
        served = load.statuses["OK"]
        await load.until("OK", served + 200)
        load.stop()
        await asyncio.wait_for(running, PATIENCE_S)
        assert set(load.statuses) == {"OK", "UNAVAILABLE"}
        assert sidecar.proxy.tensor_bytes == 0
        assert sidecar.why_not_ready() == ""


async def test_a_refusal_while_triton_is_away_has_reason_and_retry_hint(
    own_triton: EmbeddedTriton,
) -> None:
    async with running_sidecar(own_triton) as sidecar, aiohttp.ClientSession() as session:
        os.kill(own_triton.pid, signal.SIGKILL)
        await own_triton.wait()
        url = f"http://{http_url(sidecar)}/v2/models/gpu/infer"
        async with session.post(url, data=b"{}") as reply:
            assert reply.status == 503
            assert reply.headers["x-tritonsched-reason"] == "triton-unavailable"
            assert int(reply.headers["Retry-After"]) >= 1
        ready = f"http://127.0.0.1:{sidecar.admin_server.port}/healthz/ready"
        async with session.get(ready) as reply:
            assert (reply.status, await reply.text()) == (503, "Triton is not answering\n")


async def test_a_sidecar_waits_for_a_triton_that_is_away_at_start(
    repository: Path, triton_factory: TritonFactory
) -> None:
    """It listens, refuses with 503, and serves when Triton comes."""
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    triton = await triton_factory(repository, started=False, **ports)
    async with (
        running_sidecar(triton, wait=False) as sidecar,
        grpc.aio.insecure_channel(grpc_url(sidecar)) as channel,
    ):
        infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
        assert await one(infer) == "UNAVAILABLE"
        await triton.start()
        await asyncio.wait_for(sidecar.health.wait_up(), PATIENCE_S)
        assert await one(infer) == "OK"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(made.getsockname()[1]) for made in sockets]
    for made in sockets:
        made.close()
    return ports


async def test_sigterm_under_load_loses_no_accepted_request(own_triton: EmbeddedTriton) -> None:
    """What was accepted is answered OK; what comes later is told `draining`; exit code 0."""
    arguments = ("--triton-http", own_triton.http_address, "--triton-grpc", own_triton.grpc_address)
    async with (
        serve_process(*arguments) as served,
        grpc.aio.insecure_channel(served.grpc) as channel,
    ):
        infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
        assert await one(infer) == "OK"
        calls = [asyncio.create_task(one(infer)) for _ in range(200)]
        await calls[0]
        served.terminate()
        statuses = Counter(await asyncio.gather(*calls))
        assert await asyncio.wait_for(served.process.wait(), PATIENCE_S) == 0
    assert set(statuses) <= {"OK", "UNAVAILABLE"}
    assert statuses["OK"] >= 1
    assert sum(statuses.values()) == 200


async def test_draining_finishes_the_queue_and_refuses_the_rest(own_triton: EmbeddedTriton) -> None:
    """In one process, so that the moment of each request is known."""
    async with (
        running_sidecar(own_triton) as sidecar,
        grpc.aio.insecure_channel(grpc_url(sidecar)) as channel,
    ):
        infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
        assert await one(infer) == "OK"
        accepted = [asyncio.create_task(one(infer)) for _ in range(100)]
        async with asyncio.timeout(PATIENCE_S):
            while sidecar.ledger.submitted.total() < 101:
                await asyncio.wait(accepted, timeout=0.001)
        sidecar.proxy.is_draining = True
        late = asyncio.create_task(one(infer))
        assert Counter(await asyncio.gather(*accepted)) == {"OK": 100}
        assert await late == "UNAVAILABLE"
        await sidecar.proxy.drained()


@pytest.mark.parametrize("port", ["--http-port", "--grpc-port", "--metrics-port"])
async def test_a_port_in_use_ends_the_start_with_its_option_and_code_2(
    triton: EmbeddedTriton, port: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        code, text = await run_serve_once(triton, port, number)
    assert code == 2
    assert number in text
    assert port in text
    assert "Traceback" not in text


async def run_serve_once(triton: EmbeddedTriton, *arguments: str) -> tuple[int, str]:
    """A start that must fail: exit code and everything it said."""
    defaults = {
        "--http-port": "0", "--grpc-port": "0", "--metrics-port": "0", "--host": "127.0.0.1",
        "--triton-http": triton.http_address, "--triton-grpc": triton.grpc_address,
    }  # fmt: skip
    given = defaults | dict(zip(arguments[::2], arguments[1::2], strict=True))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tritonsched", "serve",
        *(word for pair in given.items() for word in pair if word),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_broken_policy_file_ends_the_start_with_each_fault_and_its_place(
    triton: EmbeddedTriton, tmp_path: Path
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("classes:\n  gold: {deadline_ms: -1, wieght: 2}\n")
    code, text = await run_serve_once(triton, "--policy", str(path))
    assert code == 2
    assert "policy.yaml:2:23: classes.gold.deadline_ms: Input should be greater than 0" in text
    assert "classes.gold.wieght: unknown key; did you mean 'weight'?" in text


async def test_half_an_address_pair_is_refused(triton: EmbeddedTriton) -> None:
    code, text = await run_serve_once(triton, "--triton-grpc", "nonsense")
    assert code == 2
    assert "--triton-grpc: 'nonsense' is not HOST:PORT" in text


@pytest.fixture
def tiny_shm(tmp_path: Path) -> Path:
    """A script that runs a command with 1 MiB of /dev/shm, in a mount namespace of its own."""
    script = tmp_path / "tiny"
    script.write_text(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs -o size=1m tmpfs /dev/shm && "
        'exec "$0" "$@"\' "$@"\n'
    )
    script.chmod(0o755)
    return script


def test_a_dev_shm_too_small_is_an_error_with_numbers_not_a_crash(tiny_shm: Path) -> None:
    """`posix_fallocate` says so at the start; without it the first write would be SIGBUS."""
    code = (
        "from tritonsched.backend.shared_memory import SharedMemoryPool\n"
        "try:\n    SharedMemoryPool(8 << 20)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    command = [str(tiny_shm), sys.executable, "-c", code]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("StartupError")
    assert "1048576 bytes" in made.stdout


@pytest.fixture
def installed_wheel(tmp_path: Path) -> Path:
    """The wheel, built and installed without anything else; the directory to import from."""
    tool = ROOT / ".tools/bin/uv"
    uv = str(tool) if tool.exists() else "uv"
    build = [uv, "build", "--wheel", "--out-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("tritonsched-*.whl")
    site = tmp_path / "site"
    install = [uv, "pip", "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, capture_output=True, check=True)
    assert (site / "tritonsched/backend/emulated_gpu/emulated_gpu.c").is_file()
    return site


async def test_the_wheel_alone_serves_an_existing_triton(
    triton: EmbeddedTriton, installed_wheel: Path
) -> None:
    """Run from another directory: no checkout around it."""
    arguments = ("--triton-http", triton.http_address, "--triton-grpc", triton.grpc_address)
    env = {"PYTHONPATH": str(installed_wheel)}
    request = infer_request("echo", {"INPUT": np.ones((1, 4), np.float32)})
    async with (
        serve_process(*arguments, cwd=installed_wheel.parent, env=env) as served,
        grpc.aio.insecure_channel(served.grpc) as channel,
        aiohttp.ClientSession() as session,
        session.get(f"http://{served.http}/v2/models/echo/ready") as reply,
    ):
        assert reply.status == 200
        infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
        assert await infer(request.SerializeToString())
