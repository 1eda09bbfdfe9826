"""HTTP/1.1 on an asyncio.Protocol: bytes to HttpRequest, HttpReply to bytes. Rule: it knows no
routes.

llhttp (package httptools) parses; this file adds what a connection needs: one request at a time in
order, a bound on what is buffered, `Expect: 100-continue`, back-pressure, and a handler that is
told when the client leaves. No task a request: the handler is given a `done`. Why not aiohttp's
server here: it costs much more a request (DESIGN.md 14), and it adds Date and Server headers that
Triton does not send. Whoever is too slow, or holds too much, hears of it through the gate.
Sources: RFC 9112; aiohttp and uvicorn for the order of things at the end of a connection.
"""

import asyncio
import contextlib
from collections import deque
from typing import cast

import structlog

from tritonsched.errors import MemoryFull, RequestTimeout
from tritonsched.frontend.gate import (
    HEAD_NS,
    SLOW_HEAD,
    SLOW_READER,
    SLOW_REQUEST,
    Gate,
    Reading,
    is_slow,
)
from tritonsched.frontend.http_heads import KnownHeads
from tritonsched.frontend.http_message import (
    Handler,
    HttpRequest,
    Reply,
    StreamReply,
    encode_head,
    encode_reply,
)
from tritonsched.frontend.http_receiver import HttpReceiver
from tritonsched.frontend.leaving import watch
from tritonsched.frontend.status import http_reply
from tritonsched.tensors import Cancel, HttpReply

PIPELINE_MAX = 16  # complete requests of one connection that may wait for their turn: then we pause
PIPELINED_MAX = 1024  # that have come all the same, in one piece with those before
LINGER_S = 2.0  # for a client to read why it was refused, before what it still sends resets it
_log = structlog.get_logger()


class HttpProtocol(HttpReceiver):
    """One connection. gate: where it stands while it lives. heads: that its server knows."""

    def __init__(
        self,
        handler: Handler,
        gate: Gate,
        heads: KnownHeads,
        request_bytes_max: int,
    ) -> None:
        super().__init__(heads, request_bytes_max)
        self._handler = handler
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest] = deque()
        self.is_busy = False  # a request is being answered
        self._free_ns = 0  # when it last was seen to be
        self._reading = Reading()
        self._keep_alive = False  # what that request wants
        self._version = "1.1"  # of HTTP, what that request speaks
        self._has_ended = False  # the client sends no more
        self._cancel: Cancel | None = None
        self._streaming: asyncio.Task[None] | None = None
        self._is_written = False  # the answer is, but the client has not read enough of it
        self._writable = asyncio.Event()
        self._writable.set()
        self._refusal: HttpReply | None = None
        self.is_closing = False

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        if not self._gate.admit(self):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gate.leave(self)
        self._queue.clear()
        self._writable.set()
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        while self._refusal is None and not self.is_closing:
            data = self._take(data)
            if not data:
                break

    def eof_received(self) -> bool:
        if self._transport is None or not self._transport.can_write_eof():
            return False  # TLS knows no client that sends no more and still reads
        self._has_ended = True
        self._watch()
        return self.is_busy

    def _watch(self) -> None:
        """The client sends no more: it is answered if it is still there."""
        cancel, transport = self._cancel, self._transport
        if cancel is not None and transport is not None and self._version != "1.0":
            watch(transport, is_waiting=lambda: self._cancel is cancel, left=self.abort)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        if self._is_written:
            self._next()

    # -- one request after the other --------------------------------------------------------------

    def _received(self, request: HttpRequest) -> None:
        if not self.is_busy:
            self._start(request)
            return
        self._queue.append(request)
        if len(self._queue) >= PIPELINE_MAX and self._transport is not None:
            self._transport.pause_reading()
        if len(self._queue) > PIPELINED_MAX:
            raise MemoryFull(f"over {PIPELINED_MAX} requests of one connection wait")

    def _continue(self) -> None:
        if self._owes_continue and not self.is_busy:  # else the answers before it come first
            self._owes_continue = False
            self._write(f"HTTP/{self._parser.get_http_version()} 100 Continue\r\n\r\n".encode())

    def _start(self, request: HttpRequest) -> None:
        self.is_busy = True
        self._keep_alive = request.keep_alive
        self._version = request.version
        cancel = self._handler(request, self._answered)
        self._cancel = cancel if self.is_busy else None
        if self._has_ended:
            self._watch()

    def _answered(self, reply: Reply) -> None:
        self._cancel = None
        keep_alive = self._keep_alive and not self.is_closing
        if isinstance(reply, StreamReply):
            self._streaming = asyncio.ensure_future(self._stream(reply, keep_alive))
            return
        try:
            data = encode_reply(reply, keep_alive=keep_alive, version=self._version)
        except Exception as error:
            self._break_off(error)
            return
        self._write(data)
        self._written(keep_alive=keep_alive)

    def _written(self, *, keep_alive: bool) -> None:
        """On to the next request, when the client has read enough of this answer."""
        self._keep_alive = keep_alive
        self._is_written = not self._writable.is_set()
        if not self._is_written:
            self._next()

    def _next(self) -> None:
        self._is_written = self.is_busy = False
        if self._transport is None:
            return
        if not self._keep_alive or (self._has_ended and not (self._queue or self._refusal)):
            self._transport.close()
        elif self._queue:
            self._transport.resume_reading()
            self._start(self._queue.popleft())
        elif self._refusal is not None:
            self._say_refusal(self._refusal)
        else:
            self._continue()

    def _break_off(self, error: Exception) -> None:
        """The client must not take what it has for the whole."""
        _log.warning("an answer broke off", error=str(error))
        self.abort()

    async def _stream(self, reply: StreamReply, keep_alive: bool) -> None:
        try:
            async with contextlib.aclosing(reply.chunks):
                line = (reply.status, reply.reason, reply.headers)
                self._write(encode_head(*line, keep_alive=keep_alive, version=self._version))
                async for chunk in reply.chunks:
                    if chunk:
                        self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                        await self._writable.wait()
                self._write(b"0\r\n\r\n")
        except Exception as error:
            keep_alive = False
            self._break_off(error)
        finally:
            self._streaming = None
        self._written(keep_alive=keep_alive)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _refuse(self, reply: HttpReply, reason: str) -> None:
        """When all before is answered, say why. reason: empty if it is counted already."""
        if self._refusal is not None:
            return
        if reason:
            self._gate.ended(reason)
        self._refusal = reply
        if not self.is_busy:
            self._say_refusal(reply)

    def _say_refusal(self, reply: HttpReply) -> None:
        """Say why, and close when the client has, or a little later: what it still sends is
        dropped, because closing on unread bytes would reset the connection under the answer.
        """
        self._write(encode_reply(reply, keep_alive=False))
        if self._transport is None:
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.abort)
        else:
            self._transport.close()  # TLS says so, and drops what still comes

    # -- to the gate ------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return self._is_between and not self.is_busy and self._is_open()

    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def held_bytes(self) -> int:
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        partly = 0 if self._is_between else self._body_bytes
        return unsent + partly + sum([len(request.body) for request in self._queue])

    def fault(self, now_ns: int) -> str:
        if self._transport is None:
            return ""
        if self._reading.is_stuck(self._transport.get_write_buffer_size(), now_ns):
            return SLOW_READER
        if self.is_busy:
            self._free_ns = now_ns  # until then it is we who are slow
        elif self._refusal is None and not self._is_between:
            began_ns = max(self._received_ns, self._free_ns)
            if self._is_head:
                return SLOW_HEAD if now_ns - began_ns > HEAD_NS else ""
            return SLOW_REQUEST if is_slow(began_ns, self._body_bytes, now_ns) else ""
        return ""

    def leave_for(self, reason: str) -> None:
        if reason in (SLOW_HEAD, SLOW_REQUEST):
            self._refuse(http_reply(RequestTimeout("the request did not come in time")), "")
        else:
            self.abort()

    def close_when_idle(self) -> None:
        """Finish the running request, take no other."""
        self.is_closing = True
        if not self.is_busy and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
