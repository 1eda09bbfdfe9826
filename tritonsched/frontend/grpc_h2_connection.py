"""One client's HTTP/2 connection to Triton's gRPC port, and its calls. Rule: it knows gRPC's calls,
not what its methods do.

A merged inference has neither a task nor a future: its message is walked, submitted, and its answer
written when it comes; answers to one client that come in one turn share a write. A client that
resets its stream (it left, or its deadline passed) cancels what is queued; it never reaches Triton.
Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md).
"""

import asyncio
import time
from functools import partial

from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.errors import DeadlineExpired, MemoryFull, RequestTimeout, TritonschedError
from tritonsched.frontend import grpc_answers, grpc_wire, pieces
from tritonsched.frontend.gate import (
    FLOOD,
    GAVE_WAY,
    HEAD_NS,
    PROTOCOL,
    SLOW_HEAD,
    SLOW_READER,
    SLOW_REQUEST,
    Reading,
    is_slow,
)
from tritonsched.frontend.grpc_framing import (
    Cutter,
    Head,
    framed,
)
from tritonsched.frontend.grpc_h2_answer import (
    NO_GRPC,
    OK_END,
    OK_HEAD,
    answer_head,
    reply_of,
    trailers_of,
)
from tritonsched.frontend.grpc_h2_call import Call, Shared
from tritonsched.frontend.grpc_h2_stream import H2Stream
from tritonsched.frontend.grpc_methods import INFER, STREAM, UNARY, error_reply
from tritonsched.http2 import NO_ERROR, Headers, Http2Protocol, Role
from tritonsched.tensors import Answer, GrpcReply, InferCall, MergedReply

STREAMS_MAX = 4096  # calls of one connection at once; more wait at the client
STREAM_WINDOW_BYTES = 4 << 20  # of a call before we must say more: large pictures need no word
TAKEN_BYTES_MIN = 1 << 20  # of a call that is not whole: less is not worth a word
CALL_BYTES = 2048  # what a call costs beside its message
UNREAD_BYTES_FREE = 4 << 20  # of answers that wait for a window: streams that a client lets wait
UNREAD_BYTES_MAX = 256 << 20  # while more waits, unary answers are replaced by a refusal
# The scheduler refuses what cannot be in time with its reason, and a client's own clock resets the
# stream; this is for calls of which neither is true, and for timers that fire a little early.
DEADLINE_GRACE_S = 0.005
DEADLINE_NS_MAX = 86_400_000_000_000  # a longer one is none


class Connection(Http2Protocol):
    """One client."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(
            Role.SERVER, streams_max=STREAMS_MAX, stream_window_bytes=STREAM_WINDOW_BYTES
        )
        self._shared = shared
        self._calls: dict[int, Call] = {}
        self._head: Head | None = None  # of its last call, if it is remembered
        self._unheard_bytes = 0
        self._answered_bytes = 0  # since it was seen how many of them wait
        self._made_ns = time.monotonic_ns()
        self._reading = Reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._shared.gate.admit(self):
            self.abort()

    # -- what the client says -------------------------------------------------------------------

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        head, timeout_ns = self._head, None
        if head is None or headers != head.said:  # most calls of a client say the same
            head, timeout_ns = self._shared.head_of(headers)
            self._head = head if head.said else None
        call = self._calls[stream_id] = Call(head, time.monotonic_ns(), timeout_ns)
        call.is_heard = end
        if not head.is_grpc:
            self._refuse(stream_id, NO_GRPC)
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
        elif end and not call.pieces:
            self.taken(stream_id, len(data))
            self._whole(stream_id, call, data)
        else:
            self._hear_piece(stream_id, call, data, end=end)

    def _hear_piece(self, stream_id: int, call: Call, data: bytes, *, end: bool) -> None:
        """A large message comes in dozens of these: what can wait for its end waits."""
        size = len(data)
        owed = call.owed_bytes = call.owed_bytes + size
        if owed and (end or owed >= TAKEN_BYTES_MIN):
            self._pay(stream_id, call)
        is_first = not call.pieces
        if size >= pieces.PIECE_BYTES_MIN:
            call.pieces.append(data)
        else:
            pieces.add(call.pieces, data)
        call.size_bytes += size
        unheard = self._unheard_bytes = self._unheard_bytes + size  # the call's, at least
        if is_first or unheard > self._shared.request_bytes_max:
            error = self._shared.too_much(call, unheard)
            if error is None and is_first and not end:
                error = self._shared.hopeless(call)
            if error is not None:
                self._end(stream_id, error_reply(error))
                return
        if end:
            self._heard(stream_id, call)

    def _pay(self, stream_id: int, call: Call) -> None:
        """The client may send as much more."""
        owed, call.owed_bytes = call.owed_bytes, 0
        self.taken(stream_id, owed)

    def _heard(self, stream_id: int, call: Call) -> None:
        """All of a message that came in pieces: a tensor in a plain one is not put together."""
        if call.head.method == INFER:
            made = grpc_wire.decode_pieces(
                call.pieces,
                call.head.kept,
                received_ns=call.received_ns,
                remaining_ns=call.timeout_ns,
            )
            if made is not None:
                self._take(call)
                self._submit(stream_id, call, made)
                return
        self._whole(stream_id, call, pieces.joined(self._take(call)))

    def on_trailers(self, stream_id: int, headers: Headers) -> None:
        """A client's trailers mean nothing in gRPC, but they end what it says."""
        self.on_data(stream_id, b"", end=True)

    def on_closed(self, stream_id: int, code: int) -> None:
        """The client has left, if the call is not answered yet."""
        if stream_id in self._calls:
            call = self._forget(stream_id)
            if call is not None and call.cancel is not None:
                call.cancel()

    def on_lost(self, exc: Exception | None) -> None:
        self._shared.gate.leave(self)
        for stream_id in list(self._calls):
            self.on_closed(stream_id, NO_ERROR)

    def on_broken(self, *, is_flood: bool) -> None:
        self._shared.gate.ended(FLOOD if is_flood else PROTOCOL)

    def _expire(self, stream_id: int) -> None:
        """Its deadline has passed, and neither the scheduler nor the client has said so."""
        cancel = self._calls[stream_id].cancel
        self._end(stream_id, error_reply(DeadlineExpired("the client's deadline has passed")))
        if cancel is not None:
            cancel()

    def _take(self, call: Call) -> pieces.Pieces:
        """What was heard of it is no longer the connection's."""
        self._unheard_bytes -= call.size_bytes
        taken, call.pieces, call.size_bytes = call.pieces, [], 0
        return taken

    def _forget(self, stream_id: int) -> Call | None:
        """The call, which is over, unless it already was."""
        call = self._calls.pop(stream_id, None)
        if call is not None:
            self._unheard_bytes -= call.size_bytes
            if call.owed_bytes:
                self._pay(stream_id, call)
            if call.timer is not None:
                call.timer.cancel()
            if call.stream is not None:
                call.stream.over()
        return call

    # -- unary calls ----------------------------------------------------------------------------

    def _whole(self, stream_id: int, call: Call, body: bytes) -> None:
        """The client has said all."""
        try:
            if call.head.method == INFER:
                self._submit(stream_id, call, self._shared.decoded(call, body))
            else:
                message = self._shared.message_of(call, body)
                call.cancel = self._shared.spawn(self._forward(stream_id, call, message)).cancel
        except Exception as error:  # the boundary: whatever it is becomes a status
            self._end(stream_id, error_reply(error))

    def _submit(self, stream_id: int, call: Call, made: InferCall) -> None:
        try:
            call.cancel = self._shared.service.submit(made, partial(self._answer, stream_id, made))
        except Exception as error:  # the boundary: whatever it is becomes a status
            self._end(stream_id, error_reply(error))

    async def _forward(self, stream_id: int, call: Call, message: bytes) -> None:
        reply = await self._shared.methods.unary(
            call.head.method, message, call.head.metadata, remaining_ns=call.timeout_ns
        )
        self._end(stream_id, reply)

    # -- ModelStreamInfer -------------------------------------------------------------------------

    def _start_stream(self, stream_id: int, call: Call) -> None:
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

    async def _relay(self, stream_id: int, call: Call, stream: H2Stream) -> None:
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

    # -- to the gate ------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not self._calls

    @property
    def held_bytes(self) -> int:
        return sum(self.unsent_bytes) + self._unheard_bytes + CALL_BYTES * len(self._calls)

    def fault(self, now_ns: int) -> str:
        if not self.is_greeted:
            return SLOW_HEAD if now_ns - self._made_ns > HEAD_NS else ""
        self.bound_credit()
        unread, waits = self.unsent_bytes
        if self._reading.is_stuck(unread + max(0, waits - UNREAD_BYTES_FREE), now_ns):
            return SLOW_READER
        for stream_id, call in list(self._calls.items()):
            self._judge_call(stream_id, call, now_ns)
        return ""

    def _judge_call(self, stream_id: int, call: Call, now_ns: int) -> None:
        """One that the client does not finish costs the others of its connection nothing."""
        waits = not call.is_heard and call.stream is None
        if waits and is_slow(call.received_ns, call.size_bytes, now_ns):
            self._shared.gate.ended(SLOW_REQUEST)
            self._end(stream_id, error_reply(RequestTimeout("the call did not come in time")))

    def leave_for(self, reason: str) -> None:
        if reason == GAVE_WAY:
            self.close()
        else:
            self.abort()

    def close_when_idle(self) -> None:
        self.say_goodbye()

    # -- what is said to the client ---------------------------------------------------------------

    def begin(self, stream_id: int, metadata: Metadata) -> None:
        """The headers of an answer in pieces."""
        if stream_id in self._calls:
            self.respond(stream_id, answer_head(metadata))

    def say(self, stream_id: int, data: bytes) -> None:
        """A piece of its body."""
        if stream_id in self._calls:
            self.body(stream_id, data)
            self.flush()

    def _answer(self, stream_id: int, made: InferCall, outcome: Answer | TritonschedError) -> None:
        """The end of an inference; a plain answer has no more to it than its bytes."""
        try:
            if not isinstance(outcome, MergedReply) or outcome.explain or outcome.variant:
                reply = reply_of(outcome, made)
                self._weigh(len(reply.message))
                self._end(stream_id, reply)
                return
            body = grpc_answers.encode_framed(outcome, made)
            self._weigh(len(body))
        except Exception as error:  # the boundary: whatever it is becomes a status
            self._end(stream_id, error_reply(error))
            return
        if self._forget(stream_id) is not None:
            self.answer(stream_id, OK_HEAD, body, OK_END)
            self._flush_later()

    def _weigh(self, size_bytes: int) -> None:
        """One more answer of that size. Raises MemoryFull if too many before it are not read."""
        self._answered_bytes += size_bytes
        if self._answered_bytes > UNREAD_BYTES_MAX:  # worth a look
            waiting_bytes = self.waiting_bytes
            self._answered_bytes = waiting_bytes + size_bytes
            if waiting_bytes > UNREAD_BYTES_MAX:
                raise MemoryFull(f"{UNREAD_BYTES_MAX} bytes of answers on one connection not read")

    def _end(self, stream_id: int, reply: GrpcReply) -> None:
        """The end of any call: an OK with its message, or a status."""
        call = self._forget(stream_id)
        if call is None:
            return
        stream = call.stream
        begun = stream is not None and stream.begun
        trailers = trailers_of(reply)
        if reply.code != "OK" and not begun:  # "Trailers-Only"
            self.respond(stream_id, (*OK_HEAD, *trailers), end=True)
        else:
            if not begun:
                self.respond(stream_id, answer_head(reply.initial_metadata))
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

    def _ended(self, stream_id: int, call: Call) -> None:
        if not call.is_heard:  # it need not send the rest
            self.reset(stream_id, NO_ERROR)
        self._flush_later()

    def _flush_later(self) -> None:
        """Answers to one client that come in one turn share a write."""
        if self._calls:
            self.flush_soon()
        else:
            self.flush()
