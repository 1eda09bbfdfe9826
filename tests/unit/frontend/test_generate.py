"""generate and generate_stream as calls with a turn: what is scheduled, dropped, and drained."""

import asyncio
from typing import Any

import pytest

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import STREAM, Events, Gate, serving
from tests.unit.frontend.services import Service, always
from tests.unit.frontend.wires import HOST, raw_http, unused_address
from tritonsched.backend.upstream_http import HttpUpstream
from tritonsched.errors import QueueFull
from tritonsched.frontend.generate import Generation, generate_call
from tritonsched.frontend.http_message import HttpRequest
from tritonsched.tensors import Cancel, Done, HttpReply, InferCall, Send

BODY = b'{"text":"a","timeout":7}'
PATIENCE_S = 30


async def test_a_call_has_its_class_and_deadline_but_its_parameters_are_the_models() -> None:
    async with serving() as there:
        headers = ("x-tritonsched-class: gold", "x-request-deadline-ms: 50")
        assert (await there.ask("POST", STREAM, *headers, body=BODY)).body == b"theirs"
        (call,) = there.service.calls
        assert (call.model, call.slo, call.hints.header_ms) == ("m", "gold", "50")
        assert (call.lone_reason, call.hints.timeout_us, bytes(call.raw)) == (
            "generate",
            None,
            BODY,
        )
        assert there.triton.seen[0].endswith(BODY)


async def test_a_refusal_comes_before_triton_is_asked() -> None:
    refusal = QueueFull("full", retry_after_ns=1_000_000)
    async with serving(Service(always(refusal))) as there:
        reply = await there.ask("POST", STREAM, body=BODY)
        assert (reply.status, reply.headers["x-tritonsched-reason"]) == (429, "queue-full")
        assert there.triton.seen == []


async def test_who_leaves_while_waiting_never_reaches_triton() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there, asyncio.timeout(PATIENCE_S):
        async with connected(there.server.port) as client:
            client.ask("POST", STREAM, body=BODY)
            await gate.reached.acquire()
        await gate.left.wait()
        assert there.triton.seen == []


async def test_a_stream_counts_as_open_until_its_end() -> None:
    events = Events(b"one", b"two")
    async with (
        serving(triton=events) as there,
        connected(there.server.port) as client,
        asyncio.timeout(PATIENCE_S),
    ):
        client.ask("POST", STREAM, body=BODY)
        assert (await client.head()).status == 200
        events.more.release()
        assert await client.chunk() == b"one"
        (close,) = there.service.closes.values()
        close()  # a drain lets it go on
        events.more.release()
        assert await client.chunk() == b"two"
        events.more.release()
        assert await client.chunk() == b""
        await events.ended.wait()
        assert there.service.closes == {}


async def test_without_triton_it_is_told_so() -> None:
    async with serving(address=await unused_address()) as there:
        reply = await there.ask("POST", STREAM, body=BODY)
        assert (reply.status, reply.headers["x-tritonsched-reason"]) == (503, "triton-unavailable")


class Turn:
    """A service that keeps the call's turn for the test to give."""

    def __init__(self) -> None:
        self.sends: list[Send] = []
        self.cancels = 0

    def submit(self, _call: InferCall, _done: Done, send: Send | None = None) -> Cancel:
        assert send is not None
        self.sends.append(send)
        return self._cancelled

    def _cancelled(self) -> None:
        self.cancels += 1


async def opening(
    address: str,
) -> tuple[Generation, Turn, "asyncio.Task[Any]"]:
    upstream = HttpUpstream(address)
    await upstream.start()
    request = HttpRequest("POST", STREAM, (), BODY, 0, keep_alive=True)
    generation = Generation(upstream, request, STREAM)
    generation.stack.push_async_callback(upstream.close)
    turn: Any = Turn()
    call = generate_call(request, STREAM, "m", "")
    task = asyncio.ensure_future(generation.open(turn, call))
    while not turn.sends:
        await asyncio.to_thread(lambda: None)
    return generation, turn, task


async def test_who_leaves_as_its_turn_comes_never_reaches_triton() -> None:
    generation, turn, task = await opening(await unused_address())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reply = await turn.sends[0](0)
    assert isinstance(reply, HttpReply)
    assert (reply.status, turn.cancels) == (499, 1)
    await generation.stack.aclose()


async def test_who_leaves_before_tritons_first_answer_is_read_to_the_end_for() -> None:
    """Its device is held until then."""
    let = asyncio.Event()
    closed = asyncio.Event()

    async def late(_request: bytes, writer: asyncio.StreamWriter) -> None:
        await let.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw_http(late) as triton, asyncio.timeout(PATIENCE_S):
        assert triton.address.startswith(HOST)
        generation, turn, task = await opening(triton.address)
        generation.stack.callback(closed.set)
        sending = asyncio.ensure_future(turn.sends[0](0))
        while not triton.seen:
            await asyncio.to_thread(lambda: None)
        task.cancel()
        let.set()
        reply = await sending
        assert isinstance(reply, HttpReply)
        assert reply.status == 200
        await closed.wait()


async def test_who_leaves_at_the_moment_it_is_opened_leaves_nothing_open() -> None:
    generation, _, task = await opening(await unused_address())
    stream: Any = object()
    generation._opened.set_result(stream)
    task.cancel()
    closed = asyncio.Event()
    generation.stack.callback(closed.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
