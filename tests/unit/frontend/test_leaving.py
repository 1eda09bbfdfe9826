"""A client that has left is told from one that only sends no more, on real sockets."""

import asyncio
import socket
from typing import Any

import pytest

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import INFER, Gate, serving
from tests.unit.frontend.services import Service
from tests.unit.proxy.scene import virtual
from tests.virtual_loop import VirtualLoop
from tritonsched.frontend.leaving import LOOK_S_MAX, PROBE_S, watch

PATIENCE_S = 30


async def test_a_client_that_closes_is_dropped() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there, asyncio.timeout(PATIENCE_S):
        async with connected(there.server.port) as client:
            client.ask("POST", INFER)
            await gate.reached.acquire()
        await gate.left.wait()


async def test_a_client_that_half_closes_is_asked_whether_it_is_there_and_answered() -> None:
    """Then the connection is closed, and its request was never dropped."""
    gate = Gate()
    async with serving(Service(gate)) as there, asyncio.timeout(PATIENCE_S):
        async with connected(there.server.port) as client:
            client.ask("POST", INFER)
            client.writer.write_eof()
            assert (await client.head()).status == 100
            gate.open.release()
            assert (await client.reply()).status == 200
            assert await client.is_closed()
        assert not gate.left.is_set()


async def test_what_was_asked_before_the_end_is_all_answered_in_order() -> None:
    gate = Gate()
    async with (
        serving(Service(gate)) as there,
        connected(there.server.port) as client,
        asyncio.timeout(PATIENCE_S),
    ):
        for _ in range(3):
            client.ask("POST", INFER)
        client.writer.write_eof()
        for _ in range(3):
            gate.open.release()
            assert (await client.reply()).status == 200
        assert await client.is_closed()


async def test_a_client_of_http_1_0_is_asked_nothing() -> None:
    """It knows no interim answers."""
    gate = Gate()
    async with (
        serving(Service(gate)) as there,
        connected(there.server.port) as client,
        asyncio.timeout(PATIENCE_S),
    ):
        client.send(f"POST {INFER} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
        client.writer.write_eof()
        await gate.reached.acquire()
        gate.open.release()
        assert (await client.head()).status == 200
        assert client.interim == []


async def test_an_idle_client_that_ends_is_closed() -> None:
    async with serving() as there, connected(there.server.port) as client:
        client.writer.write_eof()
        assert await client.is_closed()


class Connection:
    """A transport and its socket. states: as the kernel tells them, one a look."""

    def __init__(self, *states: int) -> None:
        self.states = list(states)
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option, size) == (socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        if not self.states:
            raise OSError("closed")
        return bytes([self.states.pop(0)])


@pytest.mark.parametrize("states", [(8, 8, 8, 7), (8, 8, 8)])
def test_the_kernel_is_asked_again_until_it_knows(states: tuple[int, ...]) -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        connection: Any = Connection(*states)
        left: list[int] = []
        watch(connection, is_waiting=lambda: not left, left=lambda: left.append(loop.now_ns()))
        await loop.pause(1_000_000_000)
        assert connection.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
        assert left == [pytest.approx(PROBE_S * 1e9 + 8e6, abs=100)]  # 1 + 1 + 2 + 4 ms

    story()


@virtual
async def test_a_watch_ends_with_the_answer_and_looks_seldom_before(loop: VirtualLoop) -> None:
    connection: Any = Connection(*[8] * 40)
    is_waiting = [True]
    watch(connection, is_waiting=lambda: is_waiting[0], left=lambda: None)
    await loop.pause(5_000_000_000)
    looks = 40 - len(connection.states)
    assert looks <= 10 + 5 / LOOK_S_MAX
    is_waiting[0] = False
    await loop.pause(5_000_000_000)
    assert 40 - len(connection.states) == looks


@virtual
async def test_an_answer_within_the_first_moment_needs_no_probe(loop: VirtualLoop) -> None:
    connection: Any = Connection()
    watch(connection, is_waiting=lambda: False, left=lambda: None)
    await loop.pause(1_000_000_000)
    assert connection.written == []
