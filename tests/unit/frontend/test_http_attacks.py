"""HTTP/1.1 clients that mean harm: what they keep is bounded, and the others are served."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.unit.frontend.http_client import Connection, connected
from tests.unit.frontend.http_setup import INFER, Setup, serving
from tests.unit.frontend.http_setup import Gate as Doorman
from tests.unit.frontend.services import Service, always, http_reply
from tritonsched.frontend import gate as gates
from tritonsched.frontend import http_protocol, http_receiver
from tritonsched.frontend.http_message import HttpRequest, Reply
from tritonsched.frontend.http_protocol import HttpProtocol
from tritonsched.frontend.http_receiver import HEAD_BYTES_MAX
from tritonsched.tensors import Cancel

POST = f"POST {INFER} HTTP/1.1\r\n".encode()
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = 64 * 1024


@contextlib.asynccontextmanager
async def attacked(service: Service | None = None) -> AsyncIterator[tuple[Setup, Connection]]:
    """A server, and a client that means harm; at the end another one is served."""
    async with serving(service) as there:
        gate = there.server.gate
        gate._tick_later = lambda: None  # type: ignore[method-assign]  # it looks when a test says so
        async with connected(there.server.port) as client:
            gate.ended = there.service.said.append
            yield there, client
            assert (await there.ask("POST", INFER)).status == 200


async def reached(there: Setup) -> HttpProtocol:
    """The server's end of the one connection."""
    while not (connections := list(there.server.gate)):
        await turn()
    (connection,) = connections
    assert isinstance(connection, HttpProtocol)
    return connection


async def turn() -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


def later(there: Setup, ns: int) -> None:
    """Everybody is looked at, that much later."""
    there.server.gate.clock = lambda: time.monotonic_ns() + ns
    there.server.gate.look_at_all()


async def refused(client: Connection, status: int, reason: str = "") -> None:
    reply = await client.reply()
    assert reply.status == status
    assert reply.headers.get("x-tritonsched-reason", "") == reason
    with contextlib.suppress(ConnectionError):
        assert await client.is_closed()


async def pour(client: Connection, data: bytes) -> None:
    """Send the same until the server answers or closes."""
    while not (client.reader._buffer or client.reader.at_eof()):  # type: ignore[attr-defined]  # asyncio's own
        try:
            client.send(data)
            await client.writer.drain()
        except ConnectionError:
            return
        await turn()


# -- what never ends -----------------------------------------------------------------------------


ENDLESS = {
    "a header's name": (POST, b"a" * PIECE),
    "a header's value": (POST + b"X: ", b"a" * PIECE),
    "a target": (b"POST /", b"a" * PIECE),
    "headers": (POST, b"a: b\r\n" * 1000),
    "a chunk's extension": (CHUNKED + b"1;", b"a" * PIECE),
    "a trailer": (CHUNKED + b"0\r\nX: ", b"a" * PIECE),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
    "frames of chunks": (CHUNKED, b"0000000000000001;" + bytes(100).hex().encode() + b"\r\na\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_is_refused_when_it_is_too_much(name: str) -> None:
    start, more = ENDLESS[name]
    async with attacked() as (there, client):
        client.send(start)
        await pour(client, more)
        await refused(client, 413, "payload-too-large")
        assert there.service.said == ["too-large"]


async def test_a_body_in_chunks_of_a_byte_takes_the_memory_of_its_bytes() -> None:
    async with attacked() as (there, client):
        client.send(CHUNKED + b"1\r\nx\r\n" * 900)
        await client.writer.drain()
        connection = await reached(there)
        while connection._body_bytes < 900:
            await turn()
        assert len(connection._pieces) <= 2
        client.send(b"0\r\n\r\n")
        assert (await client.reply()).status == 200
        assert there.service.calls[0].raw == b"x" * 900


# -- too many in one piece -------------------------------------------------------------------------


def at_once(_request: HttpRequest, done: Callable[[Reply], None]) -> Cancel:
    done(http_reply())
    return lambda: None


@pytest.mark.parametrize("head", [b"", b"X: y\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"])
async def test_thousands_of_requests_in_one_piece_are_a_loop_and_no_recursion(head: bytes) -> None:
    """Each is answered at once, so none waits."""
    one = POST + head + b"Content-Length: 0\r\n\r\n"
    async with attacked() as (there, client):
        connection = await reached(there)
        connection._handler = at_once
        connection.data_received(one * 3000)
        for _ in range(3000):
            assert (await client.reply()).status == 400
        assert not there.service.said


async def test_requests_that_wait_for_their_turn_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "PIPELINED_MAX", 20)
    doorman = Doorman()
    one = POST + b"Content-Length: 0\r\n\r\n"
    async with attacked(Service(doorman)) as (there, client):
        client.send(one * 100)
        await doorman.reached.acquire()
        for _ in range(100):
            doorman.open.release()
        for _ in range(22):
            assert (await client.reply()).status == 200
        await refused(client, 429, "memory-full")
        assert there.service.said == ["too-large"]


# -- slow ends -------------------------------------------------------------------------------------


async def test_a_head_that_drips_is_refused_and_an_idle_connection_is_not() -> None:
    async with attacked() as (there, client), connected(there.server.port) as idle:
        idle.ask("POST", INFER)
        assert (await idle.reply()).status == 200
        client.send(POST)
        while all(connection.is_idle for connection in there.server.gate):
            await turn()
        later(there, gates.HEAD_NS - gates.HEAD_NS // 10)
        assert there.service.said == []
        later(there, gates.HEAD_NS)
        await refused(client, 408, "request-timeout")
        assert there.service.said == [gates.SLOW_HEAD]
        idle.ask("POST", INFER)
        assert (await idle.reply()).status == 200


@pytest.mark.parametrize("known", [False, True])
async def test_a_body_that_drips_is_refused(known: bool) -> None:
    async with attacked() as (there, client):
        head = POST + b"Content-Length: 100\r\n\r\n"
        if known:
            client.send(head + bytes(100))
            assert (await client.reply()).status == 200
        client.send(head + b"x")
        connection = await reached(there)
        while connection.is_idle:
            await turn()
        later(there, gates.REQUEST_NS - gates.HEAD_NS)
        assert there.service.said == []
        later(there, gates.REQUEST_NS + 1_000_000_000)
        await refused(client, 408, "request-timeout")
        assert there.service.said == [gates.SLOW_REQUEST]


async def test_who_waits_for_an_answer_is_not_slow() -> None:
    """Not even with the next request in part: it is we who do not read it."""
    doorman = Doorman()
    async with attacked(Service(doorman)) as (there, client):
        client.send(POST + b"Content-Length: 0\r\n\r\n" + POST)
        await doorman.reached.acquire()
        later(there, 10 * gates.REQUEST_NS)
        assert there.service.said == []
        doorman.open.release()
        assert (await client.reply()).status == 200
        client.send(b"Content-Length: 0\r\n\r\n")
        doorman.open.release()
        assert (await client.reply()).status == 200
        doorman.open.release()  # for who is served at the end


async def test_who_does_not_read_is_ended_and_not_who_reads_slowly() -> None:
    reply = http_reply(body=bytes(64 << 20))
    async with attacked(Service(always(reply))) as (there, client):
        client.ask("POST", INFER)
        connection = await reached(there)
        while connection.held_bytes < 32 << 20:
            await turn()
        later(there, 0)
        unsent = connection.held_bytes
        await client.reader.readexactly(8 << 20)
        while connection.held_bytes > unsent - (1 << 20):
            await turn()
        later(there, gates.UNREAD_NS + 1_000_000_000)
        assert there.service.said == []
        later(there, 3 * gates.UNREAD_NS)
        assert there.service.said == [gates.SLOW_READER]
        while len(there.server.gate):
            await turn()
        there.service._answer = None


# -- too many --------------------------------------------------------------------------------------


async def test_a_new_connection_takes_the_place_of_an_idle_one() -> None:
    doorman = Doorman()
    async with serving(Service(doorman)) as there:
        gate = there.server.gate
        gate.limits = gates.Limits(connections_max=2)
        gate.ended = there.service.said.append
        async with connected(there.server.port) as idle, connected(there.server.port) as busy:
            busy.ask("POST", INFER)
            await doorman.reached.acquire()
            async with connected(there.server.port) as third:
                third.ask("POST", INFER)
                await doorman.reached.acquire()
                assert await idle.is_closed()
                async with connected(there.server.port) as fourth:
                    with contextlib.suppress(ConnectionError):
                        assert await fourth.is_closed()
                doorman.open.release()
                doorman.open.release()
                assert (await busy.reply()).status == 200
                assert (await third.reply()).status == 200
        assert there.service.said == [gates.GAVE_WAY, gates.TOO_MANY]


async def test_who_holds_most_is_ended_when_all_hold_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "HOLDER_BYTES_MIN", 2)
    async with attacked() as (there, client), connected(there.server.port) as other:
        large = POST + b"Content-Length: 900\r\n\r\n"
        other.send(large + b"x")
        client.send(large + bytes(500))
        while sum(guest.held_bytes for guest in there.server.gate) < 501:
            await turn()
        there.server.gate.limits = gates.Limits(held_bytes_max=400)
        there.server.gate.look_at_all()
        with contextlib.suppress(ConnectionError):
            assert await client.is_closed()
        assert there.service.said == [gates.HOLDS_MOST]
        other.send(bytes(899))
        assert (await other.reply()).status == 200


def test_the_bounds_of_a_head_are_above_tritons() -> None:
    assert HEAD_BYTES_MAX >= 8 * http_receiver.FIELD_BYTES_MAX
