"""HTTP when the client is slow, says more than it is heard, or gets an answer of the wrong wire."""

import asyncio

import pytest

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import INFER, STREAM, Events, serving
from tests.unit.frontend.services import Service, always, http_reply
from tests.unit.frontend.wires import fixed
from tritonsched.errors import TritonschedError
from tritonsched.frontend import http_protocol
from tritonsched.frontend.grpc_methods import as_grpc
from tritonsched.frontend.http_protocol import HttpProtocol
from tritonsched.frontend.http_server import as_http
from tritonsched.tensors import GrpcReply, InferCall, Wire

LARGE = bytes(range(256)) * 65536  # 16 MiB: more than the sockets' buffers hold


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a connection's buffers are full."""
    event = asyncio.Event()
    pause = HttpProtocol.pause_writing

    def noted(self: HttpProtocol) -> None:
        pause(self)
        event.set()

    monkeypatch.setattr(HttpProtocol, "pause_writing", noted)
    return event


async def test_a_slow_reader_gets_the_whole_answer_and_then_the_next(
    paused: asyncio.Event,
) -> None:
    """The next request is not even begun while the first answer is stuck."""
    service = Service(always(http_reply(status=200, body=LARGE)))
    async with serving(service) as there, connected(there.server.port) as client:
        client.ask("POST", INFER)
        client.ask("POST", INFER)
        await paused.wait()
        assert len(service.calls) == 1
        for _ in range(2):
            assert (await client.reply()).body == LARGE
        assert len(service.calls) == 2


async def test_a_reader_that_leaves_in_the_middle_frees_the_connection(
    paused: asyncio.Event,
) -> None:
    service = Service(always(http_reply(status=200, body=LARGE)))
    async with serving(service) as there:
        async with connected(there.server.port) as client:
            client.ask("POST", INFER)
            await paused.wait()
            client.writer.transport.abort()
        async with connected(there.server.port) as client:
            client.ask("POST", INFER)
            assert (await client.reply()).body == LARGE


async def test_a_slow_reader_of_a_stream_gets_all_of_it(paused: asyncio.Event) -> None:
    """What Triton sends is held back, not piled up."""
    pieces = [LARGE[:1_000_000]] * 16
    events = Events(*pieces)
    for _ in range(len(pieces) + 1):
        events.more.release()
    async with serving(triton=events) as there, connected(there.server.port) as client:
        client.ask("POST", STREAM, body=b"{}")
        await paused.wait()
        assert not events.ended.is_set()
        assert (await client.reply()).body == b"".join(pieces)


async def test_what_is_said_after_a_refusal_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    received = asyncio.Semaphore(0)
    receive = HttpProtocol.data_received

    def noted(self: HttpProtocol, data: bytes) -> None:
        receive(self, data)
        received.release()

    monkeypatch.setattr(HttpProtocol, "data_received", noted)
    async with serving() as there, connected(there.server.port) as client:
        client.send(b"nonsense\r\n\r\n")
        assert (await client.reply()).status == 400
        client.ask("POST", INFER)
        for _ in range(2):
            await received.acquire()
        assert await client.is_closed()
        assert there.service.calls == []


async def test_who_does_not_close_after_a_refusal_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_S", 0)
    async with serving() as there, connected(there.server.port) as client:
        client.send(b"nonsense\r\n\r\n")
        assert (await client.reply()).status == 400
        assert await client.is_closed()
        assert there.triton.seen == []


def call(wire: Wire) -> InferCall:
    return InferCall(wire=wire, model="m", version="", id="", received_ns=0, raw=b"")


def test_an_answer_of_the_other_wire_is_a_fault_of_ours() -> None:
    told = as_http(GrpcReply("OK", "", b""), call(Wire.HTTP))
    assert (told.status, told.body) == (500, b'{"error":"a gRPC answer for an HTTP call"}')
    with pytest.raises(TritonschedError, match="an HTTP answer for a gRPC call"):
        as_grpc(http_reply(), call(Wire.GRPC))


@pytest.mark.parametrize("headers", [(), ("X-A: 1",)])
async def test_a_large_control_answer_is_passed_on_whole(headers: tuple[str, ...]) -> None:
    triton = fixed("200 OK", *headers, body=LARGE)
    async with serving(triton=triton) as there:
        assert (await there.ask("GET", "/v2")).body == LARGE
