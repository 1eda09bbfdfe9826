"""One client's HTTP/2 connection to Triton's gRPC port, and its calls. Rule: it knows gRPC's calls,
not what its methods do.

A merged inference has neither a task nor a future: its message is walked, submitted, and its answer
written when it comes; answers to one client that come in one turn share a write. A client that
resets its stream (it left, or its deadline passed) cancels what is queued; it never reaches Triton.
Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md).
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.backend.upstream_h2 import CODE_NUMBERS, encode_header, escape
from tritonsched.errors import DeadlineExpired, MemoryFull, TritonschedError
from tritonsched.frontend import grpc_wire
from tritonsched.frontend.grpc_framing import (
    PREFIX_BYTES,
    Cutter,
    Head,
    announced_bytes,
    framed,
    is_one_message,
    message_of,
    timeout_of,
    too_large,
)
from tritonsched.frontend.grpc_h2_stream import H2Stream
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
from tritonsched.http2 import NO_ERROR, Headers, Http2Protocol, Role
from tritonsched.tensors import Answer, Cancel, GrpcReply, InferCall, MergedReply

STREAMS_MAX = 4096  # calls of one connection at once; more wait at the client
STREAM_WINDOW_BYTES = 4 << 20  # of a call before we must say more: large pictures need no word
UNHEARD_MESSAGES_MAX = 8  # messages of the largest size that may be on their way on a connection
HEADS_MAX = 1024  # header lists remembered by a server
HEAD_BYTES_MAX = 4096  # longer ones are read each time
# The scheduler refuses what cannot be in time with its reason, and a client's own clock resets the
# stream; this is for calls of which neither is true, and for timers that fire a little early.
DEADLINE_GRACE_S = 0.005
DEADLINE_NS_MAX = 86_400_000_000_000  # a longer one is none
_OK_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK_END = ((b"grpc-status", b"0"),)
_NO_GRPC = ((b":status", b"415"),)  # what the protocol asks for
_CLIENT_CODINGS = (b"grpc-accept-encoding", b"identity,deflate,gzip")


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
        return self._heads.get(headers) or self._remember(headers), timeout_ns

    def _remember(self, headers: Headers) -> Head:
        head = Head(headers)
        if sum([len(name) + len(value) for name, value in headers]) <= HEAD_BYTES_MAX:
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[headers] = head
        return head


class _Call:
    """One call. received_ns: monotonic; timeout_ns: the client's, from then on. is_heard: it has
    said all. cancel: what its end stops.
    """

    __slots__ = (
        "cancel", "head", "is_heard", "pieces", "received_ns", "size_bytes", "stream", "timeout_ns",
        "timer",
    )  # fmt: skip

    def __init__(self, head: Head, received_ns: int, timeout_ns: int | None) -> None:
        self.head = head
        self.received_ns = received_ns
        self.timeout_ns = timeout_ns
        self.is_heard = False
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.cancel: Cancel | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.stream: H2Stream | None = None


class Connection(Http2Protocol):
    """One client."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(
            Role.SERVER, streams_max=STREAMS_MAX, stream_window_bytes=STREAM_WINDOW_BYTES
        )
        self._shared = shared
        self._calls: dict[int, _Call] = {}
        self._unheard_bytes = 0
        shared.connections.add(self)

    # -- what the client says -------------------------------------------------------------------

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        head, timeout_ns = self._shared.head_of(headers)
        call = self._calls[stream_id] = _Call(head, time.monotonic_ns(), timeout_ns)
        call.is_heard = end
        if not head.is_grpc:
            self._refuse(stream_id, _NO_GRPC)
            return
        if timeout_ns is not None and timeout_ns <= DEADLINE_NS_MAX:
            wait_s = timeout_ns / 1e9 + DEADLINE_GRACE_S
            call.timer = asyncio.get_running_loop().call_later(wait_s, self._expire, stream_id)
        if head.method == STREAM:
            self._start_stream(stream_id, call)
        elif head.method not in UNARY:
            self._end(stream_id, GrpcReply("UNIMPLEMENTED", "", b""))
        elif end:
            self._whole(stream_id, call, b"")

    def on_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        call = self._calls.get(stream_id)
        if call is None:  # it has been answered before it was heard out
            self.taken(stream_id, len(data))
            return
        call.is_heard = end
        if call.stream is not None:
            self._feed(stream_id, call.stream, data, end=end)
            return
        self.taken(stream_id, len(data))
        if end and not call.pieces:
            self._whole(stream_id, call, data)
            return
        call.pieces.append(data)
        call.size_bytes += len(data)
        self._unheard_bytes += len(data)
        error = self._too_much(call)
        if error is not None:
            self._end(stream_id, error_reply(error))
        elif end:
            self._whole(stream_id, call, self._joined(call))

    def on_trailers(self, stream_id: int, headers: Headers) -> None:
        """A client's trailers mean nothing in gRPC, but they end what it says."""
        self.on_data(stream_id, b"", end=True)

    def on_closed(self, stream_id: int, code: int) -> None:
        """The client has left, if the call is not answered yet."""
        call = self._forget(stream_id)
        if call is not None and call.cancel is not None:
            call.cancel()

    def on_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        for stream_id in list(self._calls):
            self.on_closed(stream_id, NO_ERROR)

    @property
    def is_idle(self) -> bool:
        return not self._calls

    def _expire(self, stream_id: int) -> None:
        """Its deadline has passed, and neither the scheduler nor the client has said so."""
        cancel = self._calls[stream_id].cancel
        self._end(stream_id, error_reply(DeadlineExpired("the client's deadline has passed")))
        if cancel is not None:
            cancel()

    def _too_much(self, call: _Call) -> TritonschedError | None:
        """Why no more of it is heard: its own size, as announced, or the connection's."""
        size_max = self._shared.request_bytes_max
        announced = announced_bytes(call.pieces[0])
        if max(announced, call.size_bytes) > size_max + PREFIX_BYTES:
            return too_large(size_max)
        if self._unheard_bytes > UNHEARD_MESSAGES_MAX * size_max:
            return MemoryFull(
                f"{self._unheard_bytes} bytes of unfinished messages on one connection"
            )
        return None

    def _joined(self, call: _Call) -> bytes:
        body = b"".join(call.pieces)
        self._unheard_bytes -= call.size_bytes
        call.pieces, call.size_bytes = [], 0
        return body

    def _forget(self, stream_id: int) -> _Call | None:
        """The call, which is over, unless it already was."""
        call = self._calls.pop(stream_id, None)
        if call is not None:
            self._unheard_bytes -= call.size_bytes
            if call.timer is not None:
                call.timer.cancel()
            if call.stream is not None:
                call.stream.over()
        return call

    # -- unary calls ----------------------------------------------------------------------------

    def _whole(self, stream_id: int, call: _Call, body: bytes) -> None:
        """The client has said all."""
        try:
            self._start(stream_id, call, body)
        except Exception as error:  # the boundary: whatever it is becomes a status
            self._end(stream_id, error_reply(error))

    def _start(self, stream_id: int, call: _Call, body: bytes) -> None:
        size_max = self._shared.request_bytes_max
        if len(body) > size_max + PREFIX_BYTES:
            raise too_large(size_max)
        start = PREFIX_BYTES  # a plain message is not copied out of its body
        if body[:1] != b"\0" or not is_one_message(body):
            body, start = message_of(body, call.head.encoding, size_max), 0
        if call.head.method == INFER:
            self._infer(stream_id, call, body, start)
        else:
            call.cancel = self._shared.spawn(self._forward(stream_id, call, body[start:])).cancel

    def _infer(self, stream_id: int, call: _Call, body: bytes, start: int) -> None:
        made = grpc_wire.decode(
            body,
            call.head.kept,
            received_ns=call.received_ns,
            remaining_ns=call.timeout_ns,
            start=start,
        )

        def done(outcome: Answer | TritonschedError) -> None:
            self._answer(stream_id, outcome, made)

        call.cancel = self._shared.service.submit(made, done)

    async def _forward(self, stream_id: int, call: _Call, message: bytes) -> None:
        reply = await self._shared.methods.unary(
            call.head.method, message, call.head.metadata, remaining_ns=call.timeout_ns
        )
        self._end(stream_id, reply)

    # -- ModelStreamInfer -------------------------------------------------------------------------

    def _start_stream(self, stream_id: int, call: _Call) -> None:
        cutter = Cutter(call.head.encoding, self._shared.request_bytes_max)
        stream = call.stream = H2Stream(self, stream_id, cutter)
        if call.is_heard:
            stream.half_close()
        task = self._shared.spawn(self._relay(stream_id, call, stream))

        def leave() -> None:
            """A client that leaves half-closes, and what it waits for ends."""
            stream.half_close()
            task.cancel()

        call.cancel = leave

    async def _relay(self, stream_id: int, call: _Call, stream: H2Stream) -> None:
        try:
            reply = await self._shared.streams.relay(stream, call.head.metadata)
        except Exception as error:  # the boundary: whatever it is becomes a status
            reply = error_reply(error)
        self._end(stream_id, reply)

    def _feed(self, stream_id: int, stream: H2Stream, data: bytes, *, end: bool) -> None:
        try:
            stream.feed(data)
        except TritonschedError as error:
            stream.half_close()
            self._end(stream_id, error_reply(error))
            return
        if end:
            stream.half_close()

    # -- what is said to the client ---------------------------------------------------------------

    def begin(self, stream_id: int, metadata: Metadata) -> None:
        """The headers of an answer in pieces."""
        if stream_id in self._calls:
            self.respond(stream_id, _head(metadata))

    def say(self, stream_id: int, data: bytes) -> None:
        """A piece of its body."""
        if stream_id in self._calls:
            self.body(stream_id, data)
            self.flush()

    def _answer(self, stream_id: int, outcome: Answer | TritonschedError, made: InferCall) -> None:
        """The end of an inference; a plain answer has no more to it than its bytes."""
        try:
            if isinstance(outcome, MergedReply) and outcome.explain is None:
                body = grpc_wire.encode_framed(outcome, made)
            else:
                self._end(stream_id, _reply(outcome, made))
                return
        except Exception as error:  # the boundary: whatever it is becomes a status
            self._end(stream_id, error_reply(error))
            return
        if self._forget(stream_id) is not None:
            self.answer(stream_id, _OK_HEAD, body, _OK_END)
            self._flush_later()

    def _end(self, stream_id: int, reply: GrpcReply) -> None:
        """The end of any call: an OK with its message, or a status."""
        call = self._forget(stream_id)
        if call is None:
            return
        stream = call.stream
        begun = stream is not None and stream.begun
        trailers = _trailers(reply)
        if reply.code != "OK" and not begun:  # "Trailers-Only"
            self.respond(stream_id, (*_OK_HEAD, *trailers), end=True)
        else:
            if not begun:
                self.respond(stream_id, _head(reply.initial_metadata))
            if stream is None:
                self.body(stream_id, framed(reply.message))
            self.end(stream_id, trailers)
        self._ended(stream_id, call)

    def _refuse(self, stream_id: int, headers: Headers) -> None:
        """Answer what is no call of gRPC."""
        call = self._forget(stream_id)
        if call is not None:
            self.respond(stream_id, headers, end=True)
            self._ended(stream_id, call)

    def _ended(self, stream_id: int, call: _Call) -> None:
        if not call.is_heard:  # it need not send the rest
            self.reset(stream_id, NO_ERROR)
        self._flush_later()

    def _flush_later(self) -> None:
        """Answers to one client that come in one turn share a write."""
        if self._calls:
            self.flush_soon()
        else:
            self.flush()


def _head(metadata: Metadata) -> Headers:
    return (*_OK_HEAD, _CLIENT_CODINGS, *map(encode_header, metadata))


def _trailers(reply: GrpcReply) -> Headers:
    status = (b"grpc-status", CODE_NUMBERS[reply.code])
    more = map(encode_header, trailers_of(reply))
    if not reply.details:
        return (status, *more)
    return (status, (b"grpc-message", escape(reply.details)), *more)


def _reply(outcome: Answer | TritonschedError, made: InferCall) -> GrpcReply:
    if isinstance(outcome, TritonschedError):
        return error_reply(outcome)
    return as_grpc(outcome, made)
