"""Triton's gRPC port from this side: bytes there, bytes back; what fails on the way, what does
not.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.unit.frontend.wires import Call, RawGrpc, serving, unused_address
from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream, end_to_end, is_connection_fault
from tritonsched.backend.upstream_h2 import H2Upstream
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import GrpcReply

METHOD = f"{SERVICE}ModelInfer"
Kind = type[GrpcUpstream] | type[H2Upstream]


@pytest.fixture(params=[GrpcUpstream, H2Upstream])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both implementations keep the same promises."""
    made: Kind = request.param
    return made


@contextlib.asynccontextmanager
async def upstream(address: str, kind: Kind) -> AsyncIterator[GrpcCalls]:
    made = kind(address)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def echo(call: Call, context: Any) -> bytes:
    await context.send_initial_metadata((("early", "1"),))
    context.set_trailing_metadata((("late", "2"), ("late-bin", b"\xff")))
    return call.messages[0]


async def test_bytes_and_metadata_arrive_as_they_were_given_and_come_back_so(kind: Kind) -> None:
    """Also bytes that are no protobuf message; order and repeated keys are kept."""
    metadata = (("k", "1"), ("k", "2"), ("trace-bin", b"\0\xff"))
    async with serving(RawGrpc(echo)) as server, upstream(server.address, kind) as there:
        reply = await there.unary(METHOD, memoryview(b"\xff\xff"), metadata)
        (call,) = server.calls
        assert (call.method, call.messages) == (METHOD, [b"\xff\xff"])
        assert end_to_end(call.metadata) == metadata
        assert reply == GrpcReply(
            "OK", "", b"\xff\xff", (("early", "1"),), (("late", "2"), ("late-bin", b"\xff"))
        )


def test_what_grpc_itself_makes_does_not_go_on() -> None:
    kept = (("authorization", "a"), ("x-bin", b"b"), ("k", "1"), ("k", "2"))
    made = (("user-agent", "x"), ("grpc-timeout", "1S"), (":path", "/"), ("te", "trailers"))
    assert end_to_end((*made, *kept, ("content-type", "application/grpc"))) == kept
    assert end_to_end(None) == ()


async def test_words_that_end_in_a_space_arrive_whole(kind: Kind) -> None:
    """HTTP/2 forbids them (RFC 9113 8.2.1) and libnghttp2 heeds that; Triton's errors have them."""

    async def refuse(call: Call, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Expected [-1], got [1,2]. ")
        return b""

    async with serving(RawGrpc(refuse)) as server, upstream(server.address, kind) as there:
        reply = await there.unary(METHOD, b"x", (("k", "1"),))
        assert (reply.code, reply.details) == ("INVALID_ARGUMENT", "Expected [-1], got [1,2]. ")
        assert {call.messages[0] for call in server.calls} == {b"x"}
        assert all(("k", "1") in end_to_end(call.metadata) for call in server.calls)


async def test_a_large_message_goes_both_ways(kind: Kind) -> None:
    """grpc.aio's own limit would be 4 MiB."""
    large = b"\0" * (5 * 1024 * 1024)

    async def answer(call: Call, _context: Any) -> bytes:
        return b"\1" * len(large)

    handler = RawGrpc(answer)
    async with serving(handler, receive_bytes_max=-1), upstream(handler.address, kind) as there:
        assert (await there.unary(METHOD, large)).message == b"\1" * len(large)


async def test_an_error_status_is_a_reply(kind: Kind) -> None:
    """Also UNAVAILABLE, when it is Triton that says so."""

    async def refuse(_call: Call, context: Any) -> bytes:
        text = "[request id: x] Exceeds maximum queue size"
        await context.abort(grpc.StatusCode.UNAVAILABLE, text, (("why", "full"),))
        raise AssertionError

    async with serving(RawGrpc(refuse)) as server, upstream(server.address, kind) as there:
        assert await there.unary(METHOD, b"") == GrpcReply(
            "UNAVAILABLE", "[request id: x] Exceeds maximum queue size", b"", (), (("why", "full"),)
        )


async def test_nobody_listening_is_unavailable_with_a_hint_and_the_address(kind: Kind) -> None:
    address = await unused_address()
    async with upstream(address, kind) as there:
        with pytest.raises(TritonUnavailable, match=address) as caught:
            await there.unary(METHOD, b"")
        assert caught.value.retry_after_ns


async def test_a_server_that_speaks_something_else_is_unavailable(kind: Kind) -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, upstream(f"127.0.0.1:{port}", kind) as there:
        with pytest.raises(TritonUnavailable):
            await there.unary(METHOD, b"")


async def test_a_server_that_goes_away_with_a_call_is_unavailable(kind: Kind) -> None:
    handler = RawGrpc(never)
    async with serving(handler), upstream(handler.address, kind) as there:
        call = asyncio.ensure_future(there.unary(METHOD, b""))
        await handler.until(lambda: bool(handler.calls))
        await handler.stop()
        with pytest.raises(TritonUnavailable):
            await call


async def never(_call: Call, _context: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_a_call_is_finished_though_its_caller_has_left(kind: Kind) -> None:
    """Triton sees no cancel, and closing waits for the answer."""
    finish = asyncio.Event()
    finished = asyncio.Event()

    async def late(_call: Call, _context: Any) -> bytes:
        await finish.wait()
        finished.set()
        return b""

    async with serving(RawGrpc(late)) as server:
        there = kind(server.address)
        await there.start()
        caller = asyncio.ensure_future(there.unary(METHOD, b""))
        await server.until(lambda: bool(server.calls))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        closing = asyncio.ensure_future(there.close())
        finish.set()
        await closing
        assert finished.is_set()
        assert not server.calls[0].cancelled


async def test_closing_gives_up_a_call_that_does_not_end(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritonsched.backend.upstream_grpc.FINISH_S", 0.01)
    monkeypatch.setattr("tritonsched.backend.upstream_h2.FINISH_S", 0.01)
    async with serving(RawGrpc(never)) as server:
        there = kind(server.address)
        await there.start()
        caller = asyncio.ensure_future(there.unary(METHOD, b""))
        await server.until(lambda: bool(server.calls))
        await there.close()
        with pytest.raises((asyncio.CancelledError, TritonUnavailable)):
            await caller


async def test_a_call_has_no_deadline(kind: Kind) -> None:
    """Whatever the client's was: it ends at the sidecar."""
    left: list[float | None] = []

    async def look(_call: Call, context: Any) -> bytes:
        left.append(context.time_remaining())
        return b""

    async with serving(RawGrpc(look)) as server, upstream(server.address, kind) as there:
        await there.unary(METHOD, b"", (("grpc-timeout", "1S"),))
        assert left == [None]


FAULTS = {
    "failed to connect to all addresses; last error: UNKNOWN: Connection refused": True,
    "Stream removed (Socket closed)": True,
    "recvmsg:Connection reset by peer": True,
    "GOAWAY received; Error code: 0": True,
    "errors resolving nowhere:1: [field:hostname lookup error]": True,
    "Cancelling all calls": True,
    "keepalive watchdog timeout": True,
    "": False,
    "Exceeds maximum queue size": False,
    "Request timeout expired": False,
    "Request for unknown model: 'm' has no available versions": False,
}


@pytest.mark.parametrize("details", FAULTS)
def test_the_words_tell_a_broken_connection_from_tritons_own_unavailable(details: str) -> None:
    assert is_connection_fault(grpc.StatusCode.UNAVAILABLE, details) is FAULTS[details]
    assert not is_connection_fault(grpc.StatusCode.INTERNAL, details)


async def test_a_stream_carries_bytes_both_ways_and_the_half_close(kind: Kind) -> None:
    async def double(
        _call: Call, messages: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message * 2
        yield b"end"

    async def asked() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"\xff"

    handler = RawGrpc(never, double)
    async with serving(handler), upstream(handler.address, kind) as there:
        call = there.stream(f"{SERVICE}ModelStreamInfer", asked(), (("k", "v"),))
        assert [message async for message in call] == [b"aa", b"\xff\xff", b"end"]
        assert handler.calls[0].half_closed
        assert ("k", "v") in handler.calls[0].metadata
