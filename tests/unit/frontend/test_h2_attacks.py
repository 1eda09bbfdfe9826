"""gRPC clients that mean harm: what they keep is bounded, and the others are served."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import ngh2
import pytest

from tests.unit.frontend.h2_client import CANCEL, REQUEST, Client
from tests.unit.frontend.http_setup import Gate as Doorman
from tests.unit.frontend.services import Service, merged
from tests.unit.frontend.test_grpc_h2_connection import Setup, serving
from tests.unit.frontend.test_grpc_h2_fuzz import Wire
from tests.unit.frontend.wires import HOST
from tritonsched import http2
from tritonsched.errors import MemoryFull
from tritonsched.frontend import gate as gates
from tritonsched.frontend import grpc_h2_connection
from tritonsched.frontend.gate import FLOOD, PROTOCOL
from tritonsched.frontend.grpc_framing import framed
from tritonsched.frontend.grpc_h2_connection import Connection
from tritonsched.tensors import Answer, InferCall, MergedReply, Tensor

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
S = 1_000_000_000


def frame(kind: int, stream_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """RFC 9113 4.1."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream_id.to_bytes(4, "big") + payload


def window(stream_id: int, bytes_more: int = 1) -> bytes:
    return frame(WINDOW, stream_id, struct.pack(">I", bytes_more))


@contextlib.asynccontextmanager
async def attacked(service: Service | None = None) -> AsyncIterator[tuple[Setup, Client]]:
    """A server, and a client that means harm; another one was there before, and is served after."""
    async with serving(service) as there:
        gate = there.server.gate
        gate._tick_later = lambda: None  # type: ignore[method-assign]  # it looks when a test says so
        async with there.client() as other, there.client() as client:
            assert (await other.status(other.call()))[b"grpc-status"] == b"0"
            assert (await client.status(client.call()))[b"grpc-status"] == b"0"
            gate.ended = there.service.said.append
            yield there, client
            assert (await other.status(other.call()))[b"grpc-status"] == b"0"
            async with there.client() as new:
                assert (await new.status(new.call()))[b"grpc-status"] == b"0"


def later(there: Setup, ns: int) -> None:
    """Everybody is looked at, that much later."""
    there.server.gate.clock = lambda: time.monotonic_ns() + ns
    there.server.gate.look_at_all()


async def turn() -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)
    await turned.wait()


async def pour(client: Client, make: Callable[[int], bytes], count: int = 2000) -> None:
    """Send them, so many a turn, until the server closes."""
    ending = asyncio.ensure_future(client.closed())
    number = 1
    while not ending.done():
        client.send(b"".join(make(number + index) for index in range(count)))
        number += count
        with contextlib.suppress(ConnectionError):
            await client._writer.drain()
        await turn()
    await ending


# -- floods ----------------------------------------------------------------------------------------

FLOODS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "pings": (lambda _: frame(PING, 0, bytes(8)), FLOOD),
    "answers to pings that were not asked": (lambda _: frame(PING, 0, bytes(8), 1), FLOOD),
    "settings": (lambda n: frame(SETTINGS, 0, struct.pack(">HI", 4, n % 65536)), FLOOD),
    "windows of the connection": (lambda _: window(0), FLOOD),
    "windows of a stream": (lambda _: window(3), FLOOD),
    "windows of nothing": (lambda _: window(3, 0), PROTOCOL),
    "windows of streams that were never there": (lambda n: window(2 * n + 1001), PROTOCOL),
    "empty data": (lambda _: frame(DATA, 3), FLOOD),
    "padding": (lambda _: frame(DATA, 3, b"\5" + bytes(5), 8), FLOOD),
    "priorities": (lambda n: frame(PRIORITY, 3, struct.pack(">IB", 0, n % 256)), FLOOD),
    "goodbyes": (lambda _: frame(GOAWAY, 0, bytes(8)), FLOOD),
    "frames of an unknown kind": (lambda _: frame(0x42, 3), FLOOD),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_alone(name: str) -> None:
    make, reason = FLOODS[name]
    async with attacked() as (there, client):
        client.open()
        client.flush()
        await pour(client, make)
        assert there.service.said == [reason]


async def test_frames_that_calls_give_reason_for_are_no_flood() -> None:
    """As many as a client sends whose windows are small, and who measures round trips."""
    async with attacked() as (there, client):
        for _ in range(2 * http2.FRAMES_BURST // http2.FRAMES_PER_CALL):
            stream_id = client.call()
            frames = window(0) * 7 + frame(PING, 0, bytes(8)) * 8
            client.send(frames)
            assert (await client.status(stream_id))[b"grpc-status"] == b"0"
            client.heard.clear()
        assert there.service.said == []


def test_frames_are_earned_by_time_and_by_what_was_sent() -> None:
    made = http2.Http2Protocol(http2.Role.SERVER, streams_max=1)
    wire = Wire()
    made.connection_made(wire)
    broken: list[bool] = []
    made.on_broken = lambda *, is_flood: broken.append(is_flood)  # type: ignore[method-assign]  # noted
    made._empty_frames = http2.FRAMES_BURST + 500
    made._judged_ns -= S  # a second ago
    made._judge_frames()
    assert not broken
    made._empty_frames = 3 * http2.FRAMES_BURST
    made._judged_ns -= 1000 * S  # earned at most once more
    made._judge_frames()
    assert broken == [True]
    assert wire.closed
    made._break_off(is_flood=True)  # once is enough
    assert broken == [True]


def test_messages_of_a_stream_give_reason_for_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of many small messages opens two windows for each and measures round trips, as
    perf_analyzer does; it is no flood however long it reads. Without messages the same is one.
    """
    monkeypatch.setattr(http2, "time", SimpleNamespace(monotonic_ns=lambda: 0))
    made = http2.Http2Protocol(http2.Role.SERVER, streams_max=1)
    made.connection_made(Wire())
    broken: list[bool] = []
    made.on_broken = lambda *, is_flood: broken.append(is_flood)  # type: ignore[method-assign]  # noted
    made.data_received(PREFACE + frame(SETTINGS, 0))
    client = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    client.initiate_connection({})
    head = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x"))
    stream_id = client.send_request(head)
    made.data_received(client.data_to_send().removeprefix(PREFACE))
    made.respond(stream_id, [(b":status", b"200")])
    read = window(0) + window(stream_id) + frame(PING, 0, bytes(8))
    for _ in range(http2.FRAMES_BURST):
        made.body(stream_id, b"a message")
        made.flush()
        made.data_received(read)
    assert broken == []
    for _ in range(http2.FRAMES_BURST):
        if not broken:
            made.data_received(read)
    assert broken == [True]


HEADER_LISTS = {
    "too many": [(b"k%d" % number, b"v") for number in range(http2.HEADERS_MAX)],
    "too long": [(b"k", bytes(97 for _ in range(http2.HEADER_LIST_BYTES_MAX)))],
}


@pytest.mark.parametrize("name", HEADER_LISTS)
async def test_a_header_list_over_the_limit_ends_its_connection_alone(name: str) -> None:
    async with attacked() as (there, client):
        async with there.client() as giant:
            giant.engine = ngh2.Connection(
                ngh2.Role.CLIENT, ngh2.Configuration(max_send_header_block_length=1 << 20)
            )
            giant.engine.initiate_connection({})
            giant.engine.data_to_send()  # said already
            giant.open("/", *HEADER_LISTS[name])
            giant.flush()
            goodbye = await giant.until(ngh2.GoAwayReceived)
            assert goodbye.error_code == ngh2.ErrorCode.ENHANCE_YOUR_CALM
            await giant.closed()
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"
        assert there.service.said == [FLOOD]


async def test_a_bomb_of_header_compression_ends_its_connection_alone() -> None:
    """An entry of 4 KB named by one byte each, thousands of times."""
    value = bytes(97 for _ in range(3000))
    literal = b"\x40\x01a\x7f" + bytes((0x80 | (3000 - 127) % 128, (3000 - 127) // 128)) + value
    block = b"\x82\x86\x84" + literal + b"\xbe" * 12_000
    async with attacked() as (there, client):
        client.send(frame(HEADERS, 5, block, 4))
        await client.closed()
        assert there.service.said in ([FLOOD], [PROTOCOL])


async def test_headers_in_too_many_pieces_end_their_connection_alone() -> None:
    async with attacked() as (there, client):
        client.send(frame(HEADERS, 5, b"\x82"))
        await pour(client, lambda _: frame(CONTINUATION, 5), 50)
        assert there.service.said == [FLOOD]


async def test_streams_that_the_server_has_to_reset_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ "Made you reset": a fault in each stream, so that the server resets it (CVE-2025-8671)."""
    monkeypatch.setattr(http2, "GLITCHES_BURST", 50)
    monkeypatch.setattr(http2, "GLITCHES_PER_S", 1)
    async with attacked() as (there, client):
        ending = asyncio.ensure_future(client.closed())
        while not ending.done():
            with contextlib.suppress(ngh2.NGH2Error):
                stream_id = client.open()
                client.flush()
                client.send(window(stream_id, 0))
            await turn()
        assert there.service.said[0] in (FLOOD, PROTOCOL)


# -- slow ends -------------------------------------------------------------------------------------


async def test_who_never_says_that_it_speaks_http2_is_ended() -> None:
    async with attacked() as (there, _):
        reader, writer = await asyncio.open_connection(HOST, there.server.port)
        writer.write(PREFACE[:-1])
        while len(there.server.gate) < 3:
            await turn()
        later(there, gates.HEAD_NS - S)
        assert there.service.said == []
        later(there, gates.HEAD_NS + S)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert there.service.said == [gates.SLOW_HEAD]
        writer.close()


async def test_calls_that_are_opened_and_never_made_end_and_their_connection_stays() -> None:
    async with attacked() as (there, client):
        silent = [client.open() for _ in range(20)]
        client.engine.send_data(silent[0], framed(REQUEST)[:3])
        client.flush()
        whole = client.call()
        assert (await client.status(whole))[b"grpc-status"] == b"0"
        later(there, gates.REQUEST_NS - S)
        assert there.service.said == []
        later(there, gates.REQUEST_NS + S)
        for stream_id in silent:
            status = await client.status(stream_id)
            assert status[b"grpc-status"] == b"4"
            assert status[b"x-tritonsched-reason"] == b"request-timeout"
        assert there.service.said == [gates.SLOW_REQUEST] * 20
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"


async def test_no_more_calls_than_allowed_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are refused by HTTP/2, before we hear of them."""
    monkeypatch.setattr(grpc_h2_connection, "STREAMS_MAX", 5)
    async with attacked() as (there, client):
        client.engine = ngh2.Connection(
            ngh2.Role.CLIENT, ngh2.Configuration(peer_max_concurrent_streams=100)
        )
        async with there.client() as rude:
            rude.engine = client.engine
            rude.engine.initiate_connection({})
            rude.engine.data_to_send()
            ids = [rude.open() for _ in range(8)]
            rude.flush()
            for stream_id in ids[5:]:
                closed = await rude.until(ngh2.StreamClosed, stream_id)
                assert closed.error_code == ngh2.ErrorCode.REFUSED_STREAM
            for stream_id in ids[:5]:
                rude.engine.reset_stream(stream_id, CANCEL)
            rude.flush()


def large(_call: InferCall) -> MergedReply:
    return MergedReply("m", "1", (Tensor("OUT", "UINT8", (1 << 20,), bytes(1 << 20)),))


class Weighed(grpc_h2_connection.Connection):
    """Only what its answers weigh."""

    waiting_bytes = 0

    def __init__(self) -> None:
        self._answered_bytes = 0


def test_one_answer_above_that_bound_is_no_attack() -> None:
    """A message may have 2 GiB: what counts is what waited before it."""
    most, weighed = grpc_h2_connection.UNREAD_BYTES_MAX, Weighed()
    for _ in range(3):
        weighed._weigh(2 * most)
    weighed.waiting_bytes = most + 1
    with pytest.raises(MemoryFull):
        weighed._weigh(1)
    weighed.waiting_bytes = most
    weighed._weigh(1)


async def test_answers_that_nobody_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_h2_connection, "UNREAD_BYTES_MAX", 4 << 20)
    big = False

    async def answer(call: InferCall) -> Answer:
        return large(call) if big else merged()

    async with attacked(Service(answer)) as (there, client):
        big = True
        ids = [client.call() for _ in range(12)]  # no window is ever opened
        refusals = 0
        for stream_id in ids[7:]:
            status = await client.status(stream_id)
            refusals += status[b"x-tritonsched-reason"] == b"memory-full"
        assert refusals == 5
        assert max(guest.held_bytes for guest in there.server.gate) < 7 << 20
        monkeypatch.setattr(grpc_h2_connection, "UNREAD_BYTES_FREE", 0)
        later(there, 0)
        assert there.service.said == []
        later(there, gates.UNREAD_NS + S)
        assert there.service.said == [gates.SLOW_READER]
        await client.closed()
        big = False


# -- too many, and the end -------------------------------------------------------------------------


async def test_a_new_connection_takes_the_place_of_an_idle_one_which_is_told() -> None:
    doorman = Doorman()
    async with serving(Service(doorman)) as there:
        gate = there.server.gate
        gate.limits = gates.Limits(connections_max=2)
        gate.ended = there.service.said.append
        async with there.client() as idle, there.client() as busy, there.client() as late:
            running = busy.call()
            await doorman.reached.acquire()
            goodbye = await idle.until(ngh2.GoAwayReceived)
            assert (goodbye.error_code, goodbye.last_stream_id) == (0, 0)
            await idle.closed()
            waiting = late.call()
            await doorman.reached.acquire()
            async with there.client() as last:
                await last.closed()
            doorman.open.release()
            doorman.open.release()
            assert (await busy.status(running))[b"grpc-status"] == b"0"
            assert (await late.status(waiting))[b"grpc-status"] == b"0"
        assert there.service.said == [gates.GAVE_WAY, gates.TOO_MANY]


async def test_who_holds_most_is_ended_when_all_hold_too_much() -> None:
    async with attacked() as (there, client), there.client() as other:
        small = other.open()
        other.engine.send_data(small, framed(REQUEST)[:-1])
        other.flush()
        half = client.open()
        client.engine.send_data(half, framed(bytes(99_999))[:-1])
        client.flush()
        while max(guest.held_bytes for guest in there.server.gate) < 90_000:
            await turn()
        there.server.gate.limits = gates.Limits(held_bytes_max=80_000)
        there.server.gate.look_at_all()
        await client.closed()
        assert there.service.said == [gates.HOLDS_MOST]
        other.engine.send_data(small, framed(REQUEST)[-1:], end_stream=True)
        other.flush()
        assert (await other.status(small))[b"grpc-status"] == b"0"


async def test_a_message_in_bytes_takes_the_memory_of_its_bytes() -> None:
    async with attacked() as (there, client):
        stream_id = client.open()
        for byte in bytes(900):
            client.engine.send_data(stream_id, bytes((byte,)))
            client.flush()
        connections = [guest for guest in there.server.gate if isinstance(guest, Connection)]
        while sum(connection._unheard_bytes for connection in connections) < 900:
            await turn()
        (call,) = [call for connection in connections for call in connection._calls.values()]
        assert len(call.pieces) <= 2
        client.engine.reset_stream(stream_id, CANCEL)
        client.flush()
