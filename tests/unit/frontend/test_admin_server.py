"""The operator's port: metrics of both, health in words."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.unit.frontend.http_client import Reply, connected
from tests.unit.frontend.wires import HOST
from tritonsched.errors import StartupError
from tritonsched.frontend.admin_server import AdminServer


@dataclass
class View:
    """What the port shows, played by a test."""

    triton: bytes = b"nv_up 1\n"
    reason: str = ""

    def metrics(self) -> bytes:
        return b"tritonsched_up 1\n"

    async def triton_metrics(self) -> bytes:
        return self.triton

    def why_not_ready(self) -> str:
        return self.reason


@contextlib.asynccontextmanager
async def serving(view: View) -> AsyncIterator[AdminServer]:
    server = AdminServer(view, host=HOST, port=0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def get(view: View, path: str, method: str = "GET") -> Reply:
    async with serving(view) as server, connected(server.port) as client:
        client.ask(method, path, "Host: x")
        return await client.reply()


@pytest.mark.parametrize("triton", [b"nv_up 1\n", b""])
async def test_metrics_are_ours_then_tritons_as_prometheus_text(triton: bytes) -> None:
    reply = await get(View(triton), "/metrics")
    assert (reply.status, reply.body) == (200, b"tritonsched_up 1\n" + triton)
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("path", ["/healthz", "/healthz/ready"])
async def test_readiness_has_its_reason_in_words(path: str) -> None:
    ready = await get(View(), path)
    assert (ready.status, ready.body) == (200, b"ready\n")
    away = await get(View(reason="Triton is not answering"), path)
    assert (away.status, away.body) == (503, b"Triton is not answering\n")


async def test_the_process_is_alive_whatever_triton_does() -> None:
    reply = await get(View(reason="Triton is not answering"), "/healthz/live")
    assert (reply.status, reply.body) == (200, b"live\n")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("PUT", "/metrics", 405)]
)
async def test_there_is_nothing_else(method: str, path: str, status: int) -> None:
    assert (await get(View(), path, method)).status == status


async def test_a_port_in_use_is_told_with_the_option_to_change() -> None:
    async with serving(View()) as first:
        port = first.port
        second = AdminServer(View(), host=HOST, port=port)
        with pytest.raises(StartupError) as caught:
            await second.start()
        await second.stop()
    text = str(caught.value)
    assert text.startswith(f"metrics port {HOST}:{port}: ")
    assert text.endswith("; choose another with --metrics-port")
