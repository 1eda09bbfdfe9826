"""One ModelStreamInfer: bytes, order, half-close and metadata kept, each message in its turn.

    client ─▶ feed ─▶ the scheduler's turn ─▶ Triton ─▶ pump ─▶ run ─▶ client

Rule: a message is let on only when the one before it was, so Triton sees the client's order. What
the sidecar refuses is said as Triton says errors in a stream (`error_message` and the id), in its
place among the answers (stream_order.py). Bounds: one message a stream waits, READ_MAX answers are
read ahead of the client; whoever reads slowly is waited for, on both sides.

A client that leaves half-closes; Triton then finishes within a bound, because a cancelled stream
can crash it (server issues 7368, 8034). Nothing here knows which library speaks HTTP/2 to clients.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.base import GrpcCalls, Homed
from tritonsched.backend.upstream_grpc import SERVICE, Metadata, end_to_end
from tritonsched.errors import Draining, TritonschedError, TritonUnavailable
from tritonsched.frontend.grpc_codec import decode
from tritonsched.frontend.grpc_methods import error_reply
from tritonsched.frontend.service import InferService
from tritonsched.frontend.stream_order import Message, Owed, asking, settle
from tritonsched.proxy.streaming import hold
from tritonsched.tensors import Answer, GrpcReply, InferCall

STREAM_DRAIN_S = 30.0  # for Triton to finish a stream whose client has left
READ_MAX = 2  # answers that were read and that the client has not taken
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
_STRICT = ("triton_grpc_error", "true")  # metadata: an error ends the stream with its status
_DRAINED = "the sidecar is shutting down; use another instance"


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

    def __init__(self, service: InferService, upstream: GrpcCalls) -> None:
        self._service = service
        self._upstream = upstream
        self._drains: set[asyncio.Task[None]] = set()

    async def relay(self, client: StreamClient, metadata: Metadata) -> GrpcReply:
        """Relay a stream to its end; returns its status (the message is empty).

        metadata: the client's, as it came. Cancelled if the client leaves.
        """
        stream = _Stream(self._service, self._upstream, client, end_to_end(metadata))
        closed = self._service.open_stream(stream.close)
        try:
            return await stream.run()
        finally:
            closed()
            stream.leave()
            if not stream.pumping.done():
                task = asyncio.ensure_future(_finished(stream.pumping))
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    def close(self) -> None:
        """Give up what is being finished without its client."""
        for task in self._drains:
            task.cancel()


async def _finished(pumping: "asyncio.Task[None]") -> None:
    """Let Triton finish within the bound."""
    try:
        await asyncio.wait({pumping}, timeout=STREAM_DRAIN_S)
    finally:
        pumping.cancel()


class _Stream:
    """One stream. `run` is the client's task and ends with it; `pumping` lives until Triton ends
    the stream.
    """

    def __init__(
        self, service: InferService, upstream: GrpcCalls, client: StreamClient, metadata: Metadata
    ) -> None:
        self._service = service
        self._upstream = upstream
        self._client = client
        self._metadata = metadata
        self._loop = asyncio.get_running_loop()
        self._outgoing: asyncio.Queue[tuple[bytes, asyncio.Future[bool]] | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[bytes | Metadata | GrpcReply] = asyncio.Queue()
        self._taken = asyncio.Event()
        self._owed = Owed(self._incoming.put_nowait)
        self._is_reading = False  # the client's next message
        self._is_closing = False  # the sidecar drains
        self._is_half_closed = False  # by the client
        self._is_over = False  # Triton takes no more
        self._has_left = False
        self._messages = Homed(self._written())
        self._call = upstream.stream(f"{SERVICE}ModelStreamInfer", self._messages, metadata)
        self.pumping = self._loop.create_task(self._pump())
        self._feeding = self._loop.create_task(self._feed())

    async def run(self) -> GrpcReply:
        """Give the client what there is for it, at its speed; returns the stream's status."""
        while True:
            item = await self._incoming.get()
            self._taken.set()
            if isinstance(item, bytes):
                await self._client.send(item)
            elif isinstance(item, GrpcReply):
                return self._ending(item)
            else:
                await self._client.begin(item)

    def close(self) -> None:
        """Take no more messages; end when all are answered."""
        self._is_closing = True
        if self._is_reading:
            self._feeding.cancel()

    def leave(self) -> None:
        """The client is not there any more, or has its status."""
        self._has_left = True
        self._feeding.cancel()
        self._taken.set()

    def _ending(self, reply: GrpcReply) -> GrpcReply:
        if reply.code == "OK" and self._is_closing and not self._is_half_closed:
            return error_reply(Draining(_DRAINED, retry_after_ns=1_000_000_000))
        return reply

    # -- client to Triton ---------------------------------------------------------------------

    async def _feed(self) -> None:
        try:
            messages = aiter(self._client.messages())
            while not self._is_closing:
                self._is_reading = True
                message = await anext(messages, None)
                self._is_reading = False
                if message is None:
                    self._is_half_closed = not self._is_closing
                    break
                await self._turn(message)
        finally:
            self._outgoing.put_nowait(None)

    async def _turn(self, message: bytes) -> None:
        """Returns when the message has gone on or is refused."""
        call = decode(message, self._metadata, received_ns=time.monotonic_ns(), remaining_ns=None)
        if call.lone_reason == "undecodable":
            await self._write(message)  # Triton ends the stream
            return
        call.lone_reason = call.lone_reason or "stream"
        call.server = self._messages.home
        await self._owed.clear_for(self._service.is_decoupled(call))
        gone = self._loop.create_future()

        async def send(expected_ns: int) -> GrpcReply:
            is_ok = await self._sent(call, message, gone, expected_ns)
            return GrpcReply("OK" if is_ok else "INTERNAL", "", b"")

        def done(outcome: Answer | TritonschedError) -> None:
            if isinstance(outcome, TritonschedError) and not gone.done():
                self._refuse(call, outcome)
            settle(gone, value=True)

        cancel = self._service.submit(call, done, send)
        try:
            await gone
        except asyncio.CancelledError:
            cancel()
            raise
        await self._room()

    async def _sent(
        self, call: InferCall, message: bytes, gone: "asyncio.Future[bool]", expected_ns: int
    ) -> bool:
        """Send it in its turn: whether its time teaches something. gone: the next may come."""
        self._messages.home = self._messages.home or call.server
        message, asked = asking(message)
        is_decoupled = bool(self._service.is_decoupled(call))
        sent = Message(call.id, call.model, is_decoupled=is_decoupled, asked=asked)
        self._owed.sent(sent)
        is_written = await self._write(message)
        settle(gone, value=True)
        is_ok = await hold(sent.answered, expected_ns) if is_written else False
        return not self._is_full if is_ok is None else is_ok  # None: it goes on without its device

    async def _write(self, message: bytes) -> bool:
        """Whether Triton has taken it."""
        if self._is_over or self._has_left:
            return False
        written = self._loop.create_future()
        self._outgoing.put_nowait((message, written))
        return bool(await written)

    async def _written(self) -> AsyncIterator[bytes]:
        """What goes to Triton; asked for the next, the one before is written."""
        while (item := await self._outgoing.get()) is not None:
            message, written = item
            try:
                yield message
            finally:
                settle(written, value=not self._is_over)

    def _refuse(self, call: InferCall, error: TritonschedError) -> None:
        if _STRICT in self._metadata:
            self._incoming.put_nowait(error_reply(error))
            return
        refusal = pb.ModelStreamInferResponse(error_message=str(error))
        refusal.infer_response.id = call.id
        self._owed.refused(call.id, refusal.SerializeToString())

    # -- Triton to client ---------------------------------------------------------------------

    async def _pump(self) -> None:
        try:
            status = await self._read()
        except grpc.aio.AioRpcError as error:
            status = self._status(error)
        except TritonUnavailable as error:  # it was not opened: there is no server
            status = error_reply(error)
        finally:
            self._end()
        self._incoming.put_nowait(status)

    async def _read(self) -> GrpcReply:
        """Read to the end. Raises AioRpcError."""
        if initial := end_to_end(await self._call.initial_metadata()):
            self._incoming.put_nowait(initial)
        while (message := await self._call.read()) is not _EOF:
            self._owed.heard(message)
            await self._room()
        return GrpcReply("OK", "", b"", (), end_to_end(await self._call.trailing_metadata()))

    def _status(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """The status of a stream that failed: Triton's own, or ours if it went away."""
        try:
            return self._upstream.error_reply(error)
        except TritonUnavailable as away:
            return error_reply(away)

    def _end(self) -> None:
        """Nobody answers any more: nothing holds a device, nothing waits to be written."""
        self._is_over = True
        while not self._outgoing.empty():
            if (item := self._outgoing.get_nowait()) is not None:
                settle(item[1], value=False)
        self._outgoing.put_nowait(None)
        self._owed.end()

    @property
    def _is_full(self) -> bool:
        return self._incoming.qsize() >= READ_MAX

    async def _room(self) -> None:
        """Wait for the client to take what there is; one that has left takes everything."""
        while self._is_full and not self._has_left:
            self._taken.clear()
            await self._taken.wait()
        while self._has_left and not self._incoming.empty():
            self._incoming.get_nowait()
