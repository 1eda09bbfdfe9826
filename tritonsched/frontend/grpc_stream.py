"""One ModelStreamInfer: both directions as they come, order, half-close and metadata kept.

Rule: a client that leaves half-closes; Triton then finishes within a bound, because a cancelled
stream can crash it (server issues 7368, 8034). Nothing here knows which library speaks HTTP/2.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import SERVICE, Metadata, end_to_end
from tritonsched.errors import TritonUnavailable
from tritonsched.frontend.status import grpc_status
from tritonsched.tensors import GrpcReply

STREAM_DRAIN_S = 30.0  # for Triton to finish a stream whose client has left
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs


class StreamClient(Protocol):
    """The client's side of a stream, as a server offers it."""

    def messages(self) -> AsyncIterator[bytes]:
        """What the client sends, until it half-closes or leaves. Never raises."""

    async def begin(self, metadata: Metadata) -> None:
        """Send initial metadata."""

    async def send(self, message: bytes) -> None:
        """Send one message, at the client's speed."""


class Streams:
    """The streams that are open, and those that are finished without their clients."""

    def __init__(self, upstream: GrpcCalls) -> None:
        self._upstream = upstream
        self._drains: set[asyncio.Task[None]] = set()

    async def relay(self, client: StreamClient, metadata: Metadata) -> GrpcReply:
        """Relay a stream to its end; returns its status (the message is empty).

        metadata: the client's, as it came. Cancelled if the client leaves.
        """
        call = self._upstream.stream(
            f"{SERVICE}ModelStreamInfer", client.messages(), end_to_end(metadata)
        )
        # Each read is a task of its own: a read that is cancelled cancels the call, and a client
        # that leaves cancels this.
        reading: asyncio.Task[Any] = asyncio.ensure_future(call.read())
        begun = False
        try:
            while (message := await asyncio.shield(reading)) is not _EOF:
                if not begun:
                    begun = True
                    await client.begin(end_to_end(await call.initial_metadata()))
                await client.send(message)
                reading = asyncio.ensure_future(call.read())
            return GrpcReply("OK", "", b"", (), end_to_end(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            return self._status(error)
        finally:
            if not call.done():
                task = asyncio.ensure_future(_drain(call, reading))
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    def close(self) -> None:
        """Give up what is being finished without its client."""
        for task in self._drains:
            task.cancel()

    def _status(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """The status of a stream that failed: Triton's own, or ours if it went away."""
        try:
            return self._upstream.error_reply(error)
        except TritonUnavailable as away:
            code, details, trailers = grpc_status(away)
            return GrpcReply(code.name, details, b"", (), trailers)


async def _drain(call: Any, reading: asyncio.Task[Any]) -> None:
    """Let Triton finish within the bound."""
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(STREAM_DRAIN_S):
            while await reading is not _EOF:
                reading = asyncio.ensure_future(call.read())
