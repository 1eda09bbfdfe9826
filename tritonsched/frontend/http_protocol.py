"""HTTP/1.1 on an asyncio.Protocol: bytes to HttpRequest, HttpReply to bytes. Rule: it knows no
routes.

llhttp (package httptools) parses; this file adds what a connection needs: one request at a time in
order, a bound on what is buffered, `Expect: 100-continue`, back-pressure, and a handler that is
told when the client leaves. No task a request: the handler is given a `done`. Why not aiohttp's
server here: it costs much more a request (DESIGN.md 14), and it adds Date and Server headers that
Triton does not send.
Sources: RFC 9112; aiohttp and uvicorn for the order of things at the end of a connection.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import cast

import httptools
import structlog

from tritonsched.errors import PayloadTooLarge
from tritonsched.frontend.http_heads import Head, KnownHeads
from tritonsched.frontend.http_message import Headers, encode_head, encode_reply, text_of
from tritonsched.frontend.leaving import watch
from tritonsched.frontend.status import http_reply
from tritonsched.tensors import Cancel, HttpReply

HEAD_BYTES_MAX = 256 * 1024  # all of a request's head; Triton has no bound in sum
FIELD_BYTES_MAX = 8191  # a header's name or value: Triton resets connections on longer ones
TARGET_BYTES_MAX = 8189  # and on longer paths
PIPELINE_MAX = 16  # complete requests of one connection that may wait for their turn
LINGER_S = 2.0  # for a client to read why it was refused, before what it still sends resets it
_NEVER_ALLOWED = "PATCH"  # a method that llhttp knows and Triton has for nothing
_log = structlog.get_logger()


@dataclass(slots=True)  # not frozen: that triples the cost of making one
class HttpRequest:
    """One request. target: as sent; received_ns: monotonic time of its first byte as parsed.

    version: of HTTP, "1.0" or "1.1"; the answer has the same.
    """

    method: str
    target: str
    headers: Headers
    body: bytes
    received_ns: int
    keep_alive: bool
    version: str = "1.1"


@dataclass(frozen=True, slots=True)
class StreamReply:
    """An answer that is passed on in pieces, chunked, at the client's speed. chunks: closed when
    the client has left.
    """

    status: int
    reason: str
    headers: Headers
    chunks: AsyncGenerator[bytes]


Reply = HttpReply | StreamReply
Handler = Callable[[HttpRequest, Callable[[Reply], None]], Cancel]
"""Answers a request by calling its second argument, once, maybe before it returns. Never raises."""


class Connections:
    """The connections that live. none_left: set while there is none. heads: what they share."""

    def __init__(self) -> None:
        self._all: set[HttpProtocol] = set()
        self.heads = KnownHeads()
        self.none_left = asyncio.Event()
        self.none_left.set()

    def __iter__(self) -> Iterator["HttpProtocol"]:
        return iter(tuple(self._all))

    def add(self, connection: "HttpProtocol") -> None:
        self._all.add(connection)
        self.none_left.clear()

    def discard(self, connection: "HttpProtocol") -> None:
        self._all.discard(connection)
        if not self._all:
            self.none_left.set()


class HttpProtocol(asyncio.Protocol):
    """One connection. connections: where it stands while it lives."""

    def __init__(
        self,
        handler: Handler,
        connections: "Connections",
        request_bytes_max: int,
    ) -> None:
        self._handler = handler
        self._connections = connections
        self._limit = request_bytes_max
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[HttpRequest] = deque()
        self.is_busy = False  # a request is being answered
        self._keep_alive = False  # what that request wants
        self._version = "1.1"  # of HTTP, what that request speaks
        self._has_ended = False  # the client sends no more
        self._cancel: Cancel | None = None
        self._streaming: asyncio.Task[None] | None = None
        self._is_written = False  # the answer is, but the client has not read enough of it
        self._writable = asyncio.Event()
        self._writable.set()
        self._refusal: HttpReply | None = None
        self._owes_continue = False
        self.is_closing = False
        self._is_between = True  # no request has been received in part
        self._begins_here: bytes | None = None  # what was received, if a request begins with it
        self._known: Head | None = None  # of a request that is received without the parser
        self._reset()

    def _reset(self) -> None:
        self._received_ns = 0
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._queue.clear()
        self._writable.set()
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.is_closing:
            return
        if self._known is not None:
            self._receive(self._known, data)
            return
        if self._is_between:
            self._known = self._connections.heads.read(data)
            if self._known is not None:
                self.on_message_begin()
                self._receive(self._known, data[self._known.size_bytes :])
                return
            self._begins_here = data
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except PayloadTooLarge as error:
            self._refuse(http_reply(error))
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on(data[upgrade.args[0] :])
        except (httptools.HttpParserCallbackError, httptools.HttpParserError) as error:
            cause = error.__context__
            if isinstance(cause, PayloadTooLarge):
                self._refuse(http_reply(cause))
            else:
                self._refuse(HttpReply(400, "Bad Request", (), b""))

    def _receive(self, head: Head, data: bytes) -> None:
        """A piece of the body of a request whose head is known, and what comes after."""
        missing = head.body_bytes - self._body_bytes
        rest = data[missing:]
        self._chunks.append(data[:missing] if rest else data)
        self._body_bytes += len(self._chunks[-1])
        if self._body_bytes == head.body_bytes:
            self._known = None
            self._accept("POST", head.target, head.headers, keep_alive=True, version="1.1")
        if rest:
            self.data_received(rest)

    def _read_on(self, rest: bytes) -> None:
        """The client asked for another protocol, and the parser takes the body for that one. A
        server may ignore it (RFC 9110 7.8): read the head again without the question.
        """
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        if method == "CONNECT":  # of an authority, which is no path
            method, target = _NEVER_ALLOWED, f"/{target}"
        head = [f"{method} {target} HTTP/{self._parser.get_http_version()}"]
        head += [f"{name}: {value}" for name, value in self._headers if name.lower() != "upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received("\r\n".join((*head, "\r\n")).encode() + rest)

    def eof_received(self) -> bool:
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

    # -- httptools ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reset()
        self._received_ns = time.monotonic_ns()
        self._is_between = False

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(self._target), TARGET_BYTES_MAX)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(max(len(name), len(value)), FIELD_BYTES_MAX)
        self._headers.append((name.decode("latin-1"), text_of(value)))

    def _count_head(self, size: int, size_max: int) -> None:
        if size > size_max:
            raise PayloadTooLarge(f"a part of the request's head exceeds {size_max} bytes")
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise PayloadTooLarge(f"the request's head exceeds {HEAD_BYTES_MAX} bytes")

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it comes again
        for name, value in self._headers:
            lower = name.lower()
            if lower == "content-length" and int(value) > self._limit:
                self._too_large()
            if lower == "transfer-encoding" and value.lower() != "chunked":
                raise ValueError(f"transfer coding {value!r}")  # llhttp would read its chunks
            if lower == "expect":  # Triton does not look what
                self._owes_continue = True
        if not self.is_busy:  # else the answers before it come first
            self._continue()

    def _continue(self) -> None:
        if self._owes_continue:
            self._owes_continue = False
            self._write(f"HTTP/{self._parser.get_http_version()} 100 Continue\r\n\r\n".encode())

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limit:
            self._too_large()
        self._chunks.append(body)

    def _too_large(self) -> None:
        raise PayloadTooLarge(f"the body exceeds {self._limit} bytes; raise limits.request_mib_max")

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        headers = tuple(self._headers)
        began, self._begins_here = self._begins_here, None
        keep_alive = self._parser.should_keep_alive()
        if began is not None and keep_alive:
            self._connections.heads.learn(began, target, headers, self._body_bytes)
        self._owes_continue = False  # it did not wait
        version = max("1.0", self._parser.get_http_version())  # without one it is 0.9
        self._accept(method, target, headers, keep_alive=keep_alive, version=version)

    def _accept(
        self, method: str, target: str, headers: Headers, *, keep_alive: bool, version: str
    ) -> None:
        """A request is whole."""
        self._is_between = True
        chunks, self._chunks = self._chunks, []
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        request = HttpRequest(method, target, headers, body, self._received_ns, keep_alive, version)
        if self.is_busy:
            self._queue.append(request)
            if len(self._queue) >= PIPELINE_MAX and self._transport is not None:
                self._transport.pause_reading()
            return
        self._start(request)

    # -- one request after the other --------------------------------------------------------------

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

    def _refuse(self, reply: HttpReply) -> None:
        """The connection cannot be read any further: when all before is answered, say why."""
        self._refusal = reply
        if not self.is_busy:
            self._say_refusal(reply)

    def _say_refusal(self, reply: HttpReply) -> None:
        """Say why, and close when the client has, or a little later: what it still sends is
        dropped, because closing on unread bytes would reset the connection under the answer.
        """
        self._write(encode_reply(reply, keep_alive=False))
        if self._transport is not None:
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self.abort)

    def close_when_idle(self) -> None:
        """Finish the running request, take no other."""
        self.is_closing = True
        if not self.is_busy and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
