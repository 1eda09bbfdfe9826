"""The transport under gRPC, and the scripted peer that its tests talk to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import ngh2
import pytest

from tritonsched.http2 import Headers, Http2Protocol, NoStream, Role


@dataclass
class Asked:
    """A request as the peer has it."""

    stream_id: int
    path: bytes
    body: bytes


class _PeerConnection(Http2Protocol):
    def __init__(self, made: "Peer") -> None:
        super().__init__(Role.SERVER, streams_max=100)
        self._made = made
        self._paths: dict[int, bytes] = {}
        self._bodies: dict[int, bytes] = {}
        made.all.append(self)

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        self._paths[stream_id] = dict(headers)[b":path"]
        self._bodies[stream_id] = b""
        if end:
            self._whole(stream_id)

    def on_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        self._bodies[stream_id] += data
        if end:
            self._whole(stream_id)

    def _whole(self, stream_id: int) -> None:
        asked = Asked(stream_id, self._paths[stream_id], self._bodies[stream_id])
        self._made.asked.put_nowait(asked)


class Peer:
    """A server that does what a test says. all: its connections, the newest last."""

    def __init__(self) -> None:
        self.address = ""
        self.all: list[_PeerConnection] = []
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()

    async def request(self) -> Asked:
        return await self.asked.get()

    @property
    def _there(self) -> _PeerConnection:
        return self.all[-1]

    def respond(self, stream_id: int, headers: Headers) -> None:
        self._there._engine.send_response(stream_id, headers)
        self._there.flush()

    def data(self, stream_id: int, data: bytes) -> None:
        self._there._engine.send_data(stream_id, data)
        self._there.flush()

    def trailers(self, stream_id: int, headers: Headers) -> None:
        self._there._engine.send_trailers(stream_id, headers)
        self._there.flush()

    def reset(self, stream_id: int, code: int) -> None:
        self._there._engine.reset_stream(stream_id, code)
        self._there.flush()

    def go_away(self, last_stream_id: int) -> None:
        self._there._engine.send_goaway(last_stream_id=last_stream_id)
        self._there.flush()

    def lose(self) -> None:
        for connection in self.all:
            connection.abort()


@contextlib.asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    server = await asyncio.get_running_loop().create_server(
        lambda: cast("Any", _PeerConnection(made)), "127.0.0.1", 0
    )
    made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made
        made.lose()
        for connection in made.all:
            await connection.gone.wait()


class Client(Http2Protocol):
    """Notes what it hears."""

    def __init__(self) -> None:
        super().__init__(Role.CLIENT, streams_max=1)
        self.heard: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def on_closed(self, stream_id: int, code: int) -> None:
        self.heard.put_nowait(("closed", code))

    def on_goaway(self, last_stream_id: int) -> None:
        self.heard.put_nowait(("goaway", last_stream_id))

    def on_lost(self, exc: Exception | None) -> None:
        self.heard.put_nowait(("lost", 0))


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: cast("Any", Client()), "127.0.0.1", port)
    try:
        yield client
    finally:
        client.abort()
        await client.gone.wait()


async def test_what_is_no_http2_ends_the_connection() -> None:
    """And nothing else: the protocol engine's error stays inside."""

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server, connected(server.sockets[0].getsockname()[1]) as client:
        assert await client.heard.get() == ("lost", 0)
        assert not client.is_open


async def test_a_connection_that_goes_away_takes_no_stream() -> None:
    async with peer() as there, connected(int(there.address.rpartition(":")[2])) as client:
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/")]
        client.request([*headers, (b":authority", b"x")], b"")
        await there.request()
        there.go_away(1)
        assert await client.heard.get() == ("goaway", 1)
        with pytest.raises(NoStream):
            client.request([*headers, (b":authority", b"x")], b"")


async def test_a_reset_stream_is_heard_with_its_code() -> None:
    async with peer() as there, connected(int(there.address.rpartition(":")[2])) as client:
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/")]
        client.request([*headers, (b":authority", b"x")], b"")
        there.reset((await there.request()).stream_id, int(ngh2.ErrorCode.ENHANCE_YOUR_CALM))
        assert await client.heard.get() == ("closed", int(ngh2.ErrorCode.ENHANCE_YOUR_CALM))


async def test_who_does_not_read_is_not_read_from() -> None:
    async with peer() as there, connected(int(there.address.rpartition(":")[2])) as client:
        transport = client._transport
        assert transport is not None
        client.pause_writing()
        assert not transport.is_reading()
        client.resume_writing()
        assert transport.is_reading()
    client.pause_writing()  # after the end: nothing left to pause
    client.resume_writing()


def test_what_was_heard_stays_as_it_was_when_the_buffer_is_used_again() -> None:
    """All connections of a thread read into one buffer, one after the other."""
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection()
    said = (b"first" * 100, b"other" * 100)
    server = _PeerConnection(Peer())
    server._engine.initiate_connection()  # there is no transport
    for body in said:
        stream_id = client.send_request(
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")]
        )
        client.send_data(stream_id, body, end_stream=True)
        data = client.data_to_send()
        server.get_buffer(-1)[: len(data)] = data
        server.buffer_updated(len(data))
    server.get_buffer(-1)[:2048] = bytes(2048)
    assert tuple(server._bodies.values()) == said
    assert server.get_buffer(-1) is _PeerConnection(Peer()).get_buffer(-1)
