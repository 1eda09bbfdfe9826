"""ModelStreamInfer through both gRPC servers, on real sockets. What is decided about each message:
test_grpc_stream.py.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.unit.frontend.test_grpc_server import EOF, STREAM, _kind, echo, pairs, serving
from tests.unit.frontend.wires import Call, RawGrpc, unused_address

__all__ = ["_kind"]  # a fixture: both servers


async def test_a_stream_is_relayed_both_ways_in_order_with_its_half_close() -> None:
    async with serving() as there:
        call = there.stream()
        for message in (b"a", b"\xff"):
            await call.write(message)
            assert await call.read() == message * 2
        await call.done_writing()
        assert await call.read() == b"end"
        assert await call.read() is EOF
        assert pairs(await call.trailing_metadata()) == {"late": "1"}
        (seen,) = there.triton.calls
        assert (seen.method, seen.messages, seen.half_closed) == (STREAM, [b"a", b"\xff"], True)
        assert ("k", "v") in seen.metadata


async def test_a_streams_error_is_tritons_own() -> None:
    async def fail(
        _call: Call, messages: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        yield await anext(messages)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its words", (("late", "1"),))

    async with serving(triton=RawGrpc(echo, fail)) as there:
        call = there.stream()
        await call.write(b"a")
        assert await call.read() == b"a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "its words"
        assert pairs(caught.value.trailing_metadata()) == {"late": "1"}


async def test_without_triton_a_stream_is_told_so() -> None:
    async with serving(address=await unused_address()) as there:
        call = there.stream()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        trailers = pairs(caught.value.trailing_metadata())
        assert trailers["x-tritonsched-reason"] == "triton-unavailable"


class Slow:
    """A stream of Triton's that answers when it is let through."""

    def __init__(self) -> None:
        self.more = asyncio.Semaphore(0)
        self.ended = asyncio.Event()

    async def __call__(
        self, _call: Call, messages: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[bytes]:
        async for message in messages:
            await self.more.acquire()
            yield message
        await self.more.acquire()
        yield b"end"
        self.ended.set()


async def test_a_stream_whose_client_left_ends_by_half_close_and_is_drained() -> None:
    """A cancelled stream can crash Triton 2.51, so it never sees one."""
    slow = Slow()
    async with serving(triton=RawGrpc(echo, slow)) as there:
        call = there.stream()
        await call.write(b"a")
        slow.more.release()
        assert await call.read() == b"a"
        call.cancel()
        (seen,) = there.triton.calls
        await there.triton.until(lambda: seen.half_closed)
        slow.more.release()
        await slow.ended.wait()
        assert not seen.cancelled


async def test_what_is_drained_is_given_up_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonsched.frontend.grpc_stream.STREAM_DRAIN_S", 0.01)
    gone = asyncio.Event()

    async def stuck(
        _call: Call, messages: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[bytes]:
        yield await anext(messages)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            gone.set()
            raise

    async with serving(triton=RawGrpc(echo, stuck)) as there:
        call = there.stream()
        await call.write(b"a")
        assert await call.read() == b"a"
        call.cancel()
        await gone.wait()
