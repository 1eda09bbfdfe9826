"""Sidecars for tests: in this process, or as a process of their own. Loopback only."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.conftest import FRONTEND_VARIABLE
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.config.load import parse_policy
from tritonsched.options import GrpcFrontend, ServeOptions
from tritonsched.sidecar import Sidecar

HOST = "127.0.0.1"
LINE_BYTES_MAX = 4096
_METRIC = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)


def grpc_frontend() -> GrpcFrontend:
    """The one that the tests run on: pytest's `--grpc-frontend`."""
    return GrpcFrontend(os.environ.get(FRONTEND_VARIABLE, GrpcFrontend.NGH2.value))


def options(triton: EmbeddedTriton, *, policy: str = "", **fields: Any) -> ServeOptions:
    """Options of a sidecar on free ports in front of `triton`."""
    given: dict[str, Any] = {
        "host": HOST,
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": 0,
        "triton_http": triton.http_address,
        "triton_grpc": triton.grpc_address,
        "triton_metrics": triton.metrics_address,
        "policy": parse_policy(policy),
        "repository": Path("model_repository"),
        "triton_env": Path(".venv-triton"),
        "run_dir": Path(".run"),
        "drain_s": 20.0,
        "grpc_frontend": grpc_frontend(),
    }
    return ServeOptions(**(given | fields))


@contextlib.asynccontextmanager
async def running_sidecar(
    triton: EmbeddedTriton, *, policy: str = "", wait: bool = True, **fields: Any
) -> AsyncIterator[Sidecar]:
    """A sidecar in this process, connected to its Triton unless `wait` is False."""
    sidecar = Sidecar(options(triton, policy=policy, **fields), say=lambda _: None)
    try:
        await sidecar.start()
        if wait:
            await sidecar.health.wait_up()
        yield sidecar
    finally:
        await sidecar.stop()


def http_url(sidecar: Sidecar) -> str:
    return f"{HOST}:{sidecar.http_server.port}"


def grpc_url(sidecar: Sidecar) -> str:
    return f"{HOST}:{sidecar.grpc_server.port}"


async def metric(sidecar: Sidecar, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, as scraped over HTTP."""
    url = f"http://{HOST}:{sidecar.admin_server.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        text = await reply.text()
    total = 0.0
    for found, given, value in _METRIC.findall(text):
        if found == name and all(f'{key}="{word}"' in given for key, word in labels.items()):
            total += float(value)
    return total


@dataclass(slots=True)
class ServeProcess:
    """`tritonsched serve` as a process; its ports are read from what it prints."""

    process: asyncio.subprocess.Process
    http: str
    grpc: str
    metrics: str
    lines: list[str]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.asynccontextmanager
async def serve_process(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> AsyncIterator[ServeProcess]:
    """Start `python -m tritonsched serve …` on free ports and wait for its word `ready`."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--host", HOST)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tritonsched", "serve", *ports, *arguments,
        cwd=cwd,
        env=os.environ | (env or {}) | {"NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    lines: list[str] = []
    try:
        yield await _started(process, lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _started(process: asyncio.subprocess.Process, lines: list[str]) -> ServeProcess:
    assert process.stdout is not None
    found: dict[str, str] = {}
    async with asyncio.timeout(90):
        while not any(line.startswith("ready") for line in lines):
            raw = await process.stdout.readline()
            assert raw, "it ended: " + "\n".join(lines)
            line = raw.decode().rstrip()
            lines.append(line)
            key, _, rest = line.partition(" ")
            found[key] = rest.strip().removeprefix("http://").removesuffix("/metrics")
    return ServeProcess(process, found["HTTP"], found["gRPC"], found["metrics"], lines)
