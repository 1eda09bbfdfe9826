"""One client's HTTP/2 connection to Triton's gRPC port, and its calls. Rule: it knows gRPC's calls,
not what its methods do.

A merged inference has neither a task nor a future: its message is walked, submitted, and its answer
written when it comes; answers to one client that come in one turn share a write. A client that
resets its stream (it left, or its deadline passed) cancels what is queued; it never reaches Triton.
Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.backend.upstream_h2 import CODE_NUMBERS, encode_header, escape
from tritonsched.errors import PayloadTooLarge, TritonschedError
from tritonsched.frontend import grpc_wire
from tritonsched.frontend.grpc_framing import (
    PREFIX_BYTES,
    Head,
    end_of_first,
    framed,
    message_of,
    timeout_of,
)
from tritonsched.frontend.grpc_methods import (
    INFER,
    STREAM,
    UNARY,
    GrpcMethods,
    as_grpc,
    error_reply,
    trailers_of,
)
from tritonsched.frontend.grpc_stream import Streams
from tritonsched.frontend.service import InferService
from tritonsched.http2 import Headers, Http2Protocol, Role
from tritonsched.tensors import Answer, Buffer, Cancel, GrpcReply, MergedReply

STREAMS_MAX = 4096  # calls of one connection at once; more wait at the client
HEADS_MAX = 1024  # header lists remembered by a server
STREAM_MESSAGES_MAX = 64  # of one ModelStreamInfer read ahead; then its client is not read from
_OK_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK_END = ((b"grpc-status", b"0"),)


class Shared:
    """What the connections of one server have in common.

    request_bytes_max: a larger message is refused before it is whole.
    """

    def __init__(self, service: InferService, upstream: GrpcCalls, request_bytes_max: int) -> None:
        self.service = service
        self.methods = GrpcMethods(service, upstream)
        self.streams = Streams(service, upstream)
        self.request_bytes_max = request_bytes_max
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._heads: dict[Headers, Head] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def head_of(self, headers: Headers) -> tuple[Head, int | None]:
        """What they say, and the timeout in ns, which differs from call to call."""
        timeout_ns: int | None = None
        for name, value in headers:
            if name == b"grpc-timeout":
                timeout_ns = timeout_of(bytes(value))
                headers = tuple([pair for pair in headers if pair[0] != name])
                break
        head = self._heads.get(headers)
        if head is None:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            head = self._heads[headers] = Head(headers)
        return head, timeout_ns

    def message_of(self, body: bytes, encoding: str) -> bytes:
        """The one message in a body. Raises PayloadTooLarge, ClientError."""
        return message_of(body, encoding, self.request_bytes_max)


class _Call:
    """One call. received_ns, deadline_ns: monotonic; cancel: what its end stops."""

    __slots__ = ("cancel", "deadline_ns", "head", "messages", "pieces", "received_ns", "size_bytes")

    def __init__(self, head: Head, received_ns: int, deadline_ns: int | None) -> None:
        self.head = head
        self.received_ns = received_ns
        self.deadline_ns = deadline_ns
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.cancel: Cancel | None = None
        self.messages: _Messages | None = None

    @property
    def remaining_ns(self) -> int | None:
        """What was left of the client's deadline when the call came."""
        return None if self.deadline_ns is None else self.deadline_ns - self.received_ns


class Connection(Http2Protocol):
    """One client."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(Role.SERVER, streams_max=STREAMS_MAX)
        self._shared = shared
        self._calls: dict[int, _Call] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        shared.connections.add(self)

    # -- what the client says -------------------------------------------------------------------

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        now = time.monotonic_ns()
        head, timeout_ns = self._shared.head_of(headers)
        call = _Call(head, now, None if timeout_ns is None else now + timeout_ns)
        self._calls[stream_id] = call
        if head.method == STREAM:
            self._start_stream(stream_id, call)
        elif head.method not in UNARY:
            self._end(stream_id, GrpcReply("UNIMPLEMENTED", "", b""))
        if end:
            self._received(stream_id, call)

    def on_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        call = self._calls.get(stream_id)
        if call is None:  # it has been answered before it was heard out
            return
        call.pieces.append(data)
        call.size_bytes += len(data)
        if call.size_bytes > self._shared.request_bytes_max + PREFIX_BYTES:
            limit = self._shared.request_bytes_max
            text = f"the message exceeds {limit} bytes; raise limits.request_mib_max"
            self._end(stream_id, error_reply(PayloadTooLarge(text)))
        elif call.messages is not None:
            self._read_messages(stream_id, call)
        if end and stream_id in self._calls:
            self._received(stream_id, call)

    def on_trailers(self, stream_id: int, headers: Headers) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            self._received(stream_id, call)

    def on_closed(self, stream_id: int, code: int) -> None:
        self._drop(self._calls.pop(stream_id, None))

    def on_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._writable.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._drop(call)

    def _drop(self, call: _Call | None) -> None:
        """The client has left."""
        if call is not None and call.cancel is not None:
            call.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writable.clear()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writable.set()

    # -- unary calls ----------------------------------------------------------------------------

    def _received(self, stream_id: int, call: _Call) -> None:
        """The client has said all."""
        if call.messages is not None:
            call.messages.close()
            return
        pieces = call.pieces
        call.pieces = []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            message = self._shared.message_of(body, call.head.encoding)
        except TritonschedError as error:
            self._end(stream_id, error_reply(error))
            return
        if call.head.method == INFER:
            self._infer(stream_id, call, message)
        else:
            task = self._shared.spawn(self._forward(stream_id, call, message))
            call.cancel = task.cancel

    def _infer(self, stream_id: int, call: _Call, message: bytes) -> None:
        made = grpc_wire.decode(
            message,
            call.head.kept,
            received_ns=call.received_ns,
            remaining_ns=call.remaining_ns,
        )

        def done(outcome: Answer | TritonschedError) -> None:
            if isinstance(outcome, MergedReply) and outcome.explain is None:
                self._answer(stream_id, grpc_wire.encode(outcome, made))
            elif isinstance(outcome, TritonschedError):
                self._end(stream_id, error_reply(outcome))
            else:
                self._end(stream_id, as_grpc(outcome, made))

        cancel = self._shared.service.submit(made, done)
        if stream_id in self._calls:
            call.cancel = cancel

    async def _forward(self, stream_id: int, call: _Call, message: bytes) -> None:
        reply = await self._shared.methods.unary(
            call.head.method, message, call.head.metadata, remaining_ns=call.remaining_ns
        )
        self._end(stream_id, reply)

    # -- ModelStreamInfer -------------------------------------------------------------------------

    def _start_stream(self, stream_id: int, call: _Call) -> None:
        call.messages = _Messages(self._resume)
        task = self._shared.spawn(self._relay(stream_id, call, _Client(self, stream_id, call)))
        call.cancel = partial(_leave, call.messages, task)

    async def _relay(self, stream_id: int, call: _Call, client: "_Client") -> None:
        try:
            reply = await self._shared.streams.relay(client, call.head.metadata)
        except Exception as error:  # the boundary: whatever it is becomes a status
            reply = error_reply(error)
        self._end(stream_id, reply, begun=client.begun)

    def _read_messages(self, stream_id: int, call: _Call) -> None:
        """Cut what has come into messages."""
        body = b"".join(call.pieces)
        assert call.messages is not None
        while (end := end_of_first(body)) is not None:
            try:
                call.messages.put(self._shared.message_of(body[:end], call.head.encoding))
            except TritonschedError as error:
                self._end(stream_id, error_reply(error))
                return
            body = body[end:]
        call.pieces = [body] if body else []
        call.size_bytes = len(body)
        if call.messages.is_full:
            super().pause_writing()  # one buffer a connection: nothing more is read from it

    def _resume(self) -> None:
        super().resume_writing()

    # -- what is said to the client ---------------------------------------------------------------

    def begin(self, stream_id: int, metadata: Metadata) -> None:
        """The headers of an answer in pieces."""
        if stream_id in self._calls:
            self.respond(stream_id, (*_OK_HEAD, *map(encode_header, metadata)))

    async def send(self, stream_id: int, message: Buffer) -> None:
        """One message of it, at the client's speed."""
        if stream_id in self._calls:
            self.body(stream_id, framed(message))
            self.flush()
            await self._writable.wait()

    def _answer(self, stream_id: int, message: Buffer) -> None:
        """A plain OK with its message."""
        if self._calls.pop(stream_id, None) is None:
            return
        self.respond(stream_id, _OK_HEAD)
        self.body(stream_id, framed(message))
        self.end(stream_id, _OK_END)
        self._flush_later()

    def _end(self, stream_id: int, reply: GrpcReply, *, begun: bool = False) -> None:
        """The end of any call: an OK with its message, or a status."""
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        trailers = (
            (b"grpc-status", CODE_NUMBERS[reply.code]),
            *((b"grpc-message", escape(reply.details)) for _ in range(bool(reply.details))),
            *map(encode_header, trailers_of(reply)),
        )
        if reply.code != "OK" and not begun:  # "Trailers-Only"
            self.respond(stream_id, (*_OK_HEAD, *trailers), end=True)
        else:
            if not begun:
                self.respond(stream_id, (*_OK_HEAD, *map(encode_header, reply.initial_metadata)))
                if call.messages is None:
                    self.body(stream_id, framed(reply.message))
            self.end(stream_id, trailers)
        self._flush_later()

    def _flush_later(self) -> None:
        """Answers to one client that come in one turn share a write."""
        if len(self._calls) == 0:
            self.flush()
        else:
            self.flush_soon()

    @property
    def is_idle(self) -> bool:
        return not self._calls


class _Messages:
    """What a client has sent on a stream and nobody has taken yet. resume: there is room again."""

    def __init__(self, resume: Callable[[], None]) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._resume = resume

    @property
    def is_full(self) -> bool:
        return self._queue.qsize() >= STREAM_MESSAGES_MAX

    def put(self, message: bytes) -> None:
        self._queue.put_nowait(message)

    def close(self) -> None:
        """No more will come."""
        self._queue.put_nowait(None)

    async def all(self) -> AsyncIterator[bytes]:
        while (message := await self._queue.get()) is not None:
            if self._queue.qsize() == STREAM_MESSAGES_MAX - 1:
                self._resume()
            yield message


class _Client:
    """A `StreamClient` on this server. begun: its headers are sent."""

    def __init__(self, connection: Connection, stream_id: int, call: _Call) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._call = call
        self.begun = False

    def messages(self) -> AsyncIterator[bytes]:
        assert self._call.messages is not None
        return self._call.messages.all()

    async def begin(self, metadata: Metadata) -> None:
        self.begun = True
        self._connection.begin(self._stream_id, metadata)

    async def send(self, message: bytes) -> None:
        if not self.begun:
            await self.begin(())
        await self._connection.send(self._stream_id, message)


def _leave(messages: _Messages, task: asyncio.Task[None]) -> None:
    """A client that leaves half-closes, and what it waits for ends."""
    messages.close()
    task.cancel()
