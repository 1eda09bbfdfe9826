"""What a gRPC server on HTTP/2 of our own must withstand; what both servers promise is in
test_grpc_server.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import ngh2
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.frontend.h2_client import CANCEL, REQUEST, Client
from tests.unit.frontend.services import Service, always, merged
from tests.unit.frontend.wires import HOST, Call, RawGrpc
from tests.unit.frontend.wires import serving as triton_serving
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream
from tritonsched.frontend import grpc_h2_call, grpc_h2_connection, grpc_h2_server
from tritonsched.frontend.grpc_framing import framed
from tritonsched.frontend.grpc_h2_server import H2GrpcServer
from tritonsched.frontend.stream_order import asking
from tritonsched.tensors import Answer, InferCall

LIMIT = 100_000
STREAM = f"{SERVICE}ModelStreamInfer"


class Setup:
    """A server, the service and the Triton behind it."""

    def __init__(self, server: H2GrpcServer, service: Service, triton: RawGrpc) -> None:
        self.server = server
        self.service = service
        self.triton = triton

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection(HOST, self.server.port))
        client.engine.initiate_connection({})
        client.flush()
        try:
            yield client
        finally:
            await client.leave()


async def hang(_call: Call, _context: Any) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def double(
    _call: Call, messages: AsyncIterator[bytes], _context: Any
) -> AsyncIterator[bytes]:
    async for message in messages:
        yield message * 2


@contextlib.asynccontextmanager
async def serving(service: Service | None = None, stream: Any = double) -> AsyncIterator[Setup]:
    service = service or Service()
    async with triton_serving(RawGrpc(hang, stream)) as triton:
        upstream = GrpcUpstream(triton.address)
        await upstream.start()
        server = H2GrpcServer(service, upstream, host=HOST, port=0, request_bytes_max=LIMIT)
        await server.start()
        try:
            yield Setup(server, service, triton)
        finally:
            await server.stop()
            await triton.stop()
            await upstream.close()


def stream_request(model: str = "m") -> bytes:
    made: bytes = pb.ModelInferRequest(model_name=model).SerializeToString()
    return made


# -- calls ---------------------------------------------------------------------------------------


async def test_a_message_in_pieces_is_put_together() -> None:
    async with serving() as there, there.client() as client:
        stream_id = client.open()
        for byte in framed(REQUEST):
            client.engine.send_data(stream_id, bytes([byte]))
            client.flush()
        client.engine.end_stream(stream_id)
        client.flush()
        assert (await client.status(stream_id))[b"grpc-status"] == b"0"
        assert bytes(there.service.calls[0].raw) == REQUEST


async def test_a_large_tensor_is_not_put_together() -> None:
    """From the second message of its layout on; the bytes to be sent on are those that came."""
    request = pb.ModelInferRequest(model_name="m", id="x")
    request.inputs.add(name="IN", datatype="UINT8", shape=(1, 50_000))
    request.raw_input_contents.append(b"12345" * 10_000)
    message = request.SerializeToString()
    async with serving() as there, there.client() as client:
        for _ in range(2):
            stream_id = client.call(body=framed(message))
            assert (await client.status(stream_id))[b"grpc-status"] == b"0"
        first, second = there.service.calls
        assert first.inputs[0].data == b"12345" * 10_000
        pieces = second.inputs[0].pieces
        assert pieces is not None
        assert len(pieces.parts) > 1
        assert bytes(pieces) == b"12345" * 10_000
        assert bytes(second.raw) == message


async def test_trailers_of_a_client_end_what_it_says() -> None:
    async with serving() as there, there.client() as client:
        stream_id = client.open()
        client.engine.send_data(stream_id, framed(REQUEST))
        client.engine.send_trailers(stream_id, [(b"k", b"v")])
        client.flush()
        assert (await client.status(stream_id))[b"grpc-status"] == b"0"


@pytest.mark.parametrize("body", [b"\0", framed(REQUEST) * 2, framed(REQUEST)[:-1]])
async def test_a_body_that_is_not_one_message_is_refused(body: bytes) -> None:
    async with serving() as there, there.client() as client:
        status = await client.status(client.call(body=body))
        assert status[b"grpc-status"] == b"13"
        assert b"not one message" in status[b"grpc-message"]


async def test_a_call_without_a_message_is_refused() -> None:
    async with serving() as there, there.client() as client:
        stream_id = client.open()
        client.engine.end_stream(stream_id)
        client.flush()
        assert (await client.status(stream_id))[b"grpc-status"] == b"13"


async def test_what_is_no_grpc_is_told_so() -> None:
    async with serving() as there, there.client() as client:
        stream_id = client.open(grpc=False)
        client.flush()
        assert await client.status(stream_id) == {b":status": b"415"}


async def test_a_message_over_the_limit_is_refused_before_it_is_sent() -> None:
    """Its announcement is enough, and the client is told that it need not send the rest."""
    async with serving() as there, there.client() as client:
        stream_id = client.open()
        client.engine.send_data(stream_id, struct.pack(">BI", 0, LIMIT + 1))
        client.flush()
        status = await client.status(stream_id)
        assert status[b"grpc-status"] == b"8"
        assert status[b"x-tritonsched-reason"] == b"payload-too-large"
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"


async def test_unfinished_messages_of_one_connection_are_bounded() -> None:
    count = grpc_h2_call.UNHEARD_MESSAGES_MAX + 1
    piece = struct.pack(">BI", 0, LIMIT) + bytes(LIMIT - 1)
    async with serving() as there, there.client() as client:
        ids = []
        for _ in range(count):
            ids.append(client.open())
            client.engine.send_data(ids[-1], piece)
            client.flush()
        status = await client.status(ids[-1])
        assert status[b"x-tritonsched-reason"] == b"memory-full"
        for stream_id in ids[:-1]:
            client.engine.reset_stream(stream_id, CANCEL)
        client.flush()
        assert await client.status(client.call(body=b"\0" + piece[1:] + b"x"))


async def test_a_deadline_ends_a_call_that_nobody_else_ends() -> None:
    async with serving() as there, there.client() as client:
        live = f"{SERVICE}ServerLive"
        status = await client.status(client.call((b"grpc-timeout", b"1m"), method=live))
        assert status[b"grpc-status"] == b"4"
        assert status[b"x-tritonsched-reason"] == b"deadline-expired"


async def test_a_deadline_cancels_what_is_queued() -> None:
    left = asyncio.Event()

    async def queued(_call: InferCall) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    async with serving(Service(queued)) as there, there.client() as client:
        status = await client.status(client.call((b"grpc-timeout", b"1m")))
        assert status[b"grpc-status"] == b"4"
        await left.wait()


async def test_answers_come_in_any_order_on_one_connection() -> None:
    released = asyncio.Event()

    async def answer(call: InferCall) -> Answer:
        if call.id == "slow":
            await released.wait()
        return merged()

    async with serving(Service(answer)) as there, there.client() as client:
        slow = pb.ModelInferRequest(model_name="m", id="slow").SerializeToString()
        first = client.call(body=framed(slow))
        second = client.call()
        assert (await client.status(second))[b"grpc-status"] == b"0"
        released.set()
        assert (await client.status(first))[b"grpc-status"] == b"0"


async def test_a_fault_while_submitting_is_a_status_and_the_connection_lives() -> None:
    class Broken(Service):
        def submit(self, *given: Any, **_named: Any) -> Any:
            self.calls.append(given[0])
            if len(self.calls) == 1:
                raise ValueError("secret")
            return super().submit(*given)

    async with serving(Broken()) as there, there.client() as client:
        status = await client.status(client.call())
        assert status[b"grpc-status"] == b"13"
        assert b"secret" not in status[b"grpc-message"]
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"


# -- floods and slow ends ------------------------------------------------------------------------


async def test_clients_that_give_up_many_calls_keep_their_connection() -> None:
    """Each deadline that passes is a reset; libnghttp2 alone ends a connection after 1000."""
    async with serving(Service(always(merged()))) as there, there.client() as client:
        for _ in range(30):
            ids = [client.open() for _ in range(50)]
            client.flush()
            for stream_id in ids:
                client.engine.reset_stream(stream_id, CANCEL)
            client.flush()
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"


async def test_a_flood_of_resets_ends_the_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tritonsched.http2.RESETS_BURST", 20)
    monkeypatch.setattr("tritonsched.http2.RESETS_PER_S", 1)
    async with serving() as there, there.client() as other, there.client() as client:
        for _ in range(200):
            stream_id = client.open()
            client.flush()
            client.engine.reset_stream(stream_id, CANCEL)
            client.flush()
        await client.closed()
        assert (await other.status(other.call()))[b"grpc-status"] == b"0"


FLOODS = {
    "a frame of no kind of stream": b"\0\0\1\0\0\0\0\0\0x",
    "headers that never end": b"\0\0\1\1\0\0\0\0\1\x82" + b"\0\0\1\x09\0\0\0\0\1\x84" * 40,
    "a header list too long": b"\x03\0\0\1\4\0\0\0\1" + bytes([0, 1, 97, 0x7F, 0xE1, 0xFF, 5]),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_what_breaks_the_protocol_ends_the_connection_and_no_other(name: str) -> None:
    async with serving() as there, there.client() as other, there.client() as client:
        client.send(FLOODS[name] + bytes(1 << 18))
        await client.closed()
        assert (await other.status(other.call()))[b"grpc-status"] == b"0"


async def test_what_is_no_http2_ends_the_connection() -> None:
    async with serving() as there:
        reader, writer = await asyncio.open_connection(HOST, there.server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while await reader.read(1 << 16):
            pass
        writer.close()


async def test_a_stream_whose_client_gives_no_window_is_waited_for() -> None:
    """What Triton says to it is not heaped up, and the connection's other calls go on."""
    said = 0
    stuck = asyncio.Event()

    async def talk(
        _call: Call, messages: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[bytes]:
        nonlocal said
        async for _ in messages:
            while True:
                said += 1
                if said == 5:  # four fill what is kept of a stream and its window
                    stuck.set()
                yield pb.ModelStreamInferResponse(error_message="x" * 100_000).SerializeToString()

    async with serving(stream=talk) as there, there.client() as client:
        client.engine.set_local_window_size(1 << 30)  # of the connection; the stream's stays
        stream_id = client.open(STREAM)
        client.engine.send_data(stream_id, framed(stream_request()))
        client.flush()
        await stuck.wait()
        for _ in range(30):
            assert (await client.status(client.call()))[b"grpc-status"] == b"0"
        (connection,) = there.server.gate
        assert connection.held_bytes < 2_000_000
        client.engine.reset_stream(stream_id, CANCEL)
        client.flush()


async def test_a_client_faster_than_triton_waits_and_its_other_calls_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tritonsched.frontend.grpc_h2_stream.AHEAD_BYTES_MAX", 1000)
    monkeypatch.setattr(grpc_h2_connection, "STREAM_WINDOW_BYTES", 100_000)
    more = asyncio.Event()
    heard: list[bytes] = []

    async def slow(
        _call: Call, messages: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[bytes]:
        await more.wait()
        async for message in messages:
            heard.append(message)
            yield b"taken"

    request = pb.ModelInferRequest(model_name="m", id="i" * 30_000).SerializeToString()
    async with serving(stream=slow) as there, there.client() as client:
        assert (await client.status(client.call()))[b"grpc-status"] == b"0"  # settings are known
        stream_id = client.open(STREAM)
        client.engine.send_data(stream_id, framed(request) * 40, end_stream=True)
        client.flush()
        for _ in range(10):
            assert (await client.status(client.call()))[b"grpc-status"] == b"0"
        assert client.engine.queued_body_size(stream_id) > 0
        more.set()
        assert (await client.status(stream_id))[b"grpc-status"] == b"0"
        assert heard == [asking(request)[0]] * 40


# -- the end -------------------------------------------------------------------------------------


async def test_a_stop_lets_running_calls_finish_and_says_goodbye() -> None:
    reached, released = asyncio.Event(), asyncio.Event()

    async def answer(_call: InferCall) -> Answer:
        reached.set()
        await released.wait()
        return merged()

    async with serving(Service(answer)) as there, there.client() as client:
        stream_id = client.call()
        await reached.wait()
        stopping = asyncio.ensure_future(there.server.stop())
        later = client.call()  # it has not heard of it yet
        warning = await client.until(ngh2.GoAwayReceived)
        assert warning.last_stream_id == (1 << 31) - 1
        client.heard.clear()
        goodbye = await client.until(ngh2.GoAwayReceived)
        assert goodbye.last_stream_id == later
        released.set()
        assert (await client.status(stream_id))[b"grpc-status"] == b"0"
        assert (await client.status(later))[b"grpc-status"] == b"0"
        await client.closed()
        await stopping


async def test_a_stop_waits_no_longer_than_its_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_h2_server, "STOP_GRACE_S", 0.01)
    async with serving() as there, there.client() as client:
        client.call(method=f"{SERVICE}ServerLive")
        await there.triton.until(lambda: bool(there.triton.calls))
        await there.server.stop()
        await client.closed()
