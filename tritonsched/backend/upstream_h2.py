"""Triton's gRPC port over libnghttp2: the same promises as `upstream_grpc`, a tenth of its CPU.

Rule: no deadline, no cancel (Triton 2.51 can crash on either: server issues 7368, 8034), no task
a call. One connection, dialled at the first call and again when it broke; a call that the other
end refused to look at (GOAWAY, REFUSED_STREAM) is sent once more, all others of a broken
connection end in TritonUnavailable. A request leaves within `send`; grpc.aio hands it to a thread.
Streams, which carry few messages, stay with grpc.aio.
Source: gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md), status codes and percent encoding included.
"""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Any, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

import grpc

from tritonsched.backend.upstream_grpc import (
    FINISH_S,
    GrpcUpstream,
    Metadata,
    end_to_end,
    is_connection_fault,
)
from tritonsched.errors import TritonUnavailable
from tritonsched.http2 import (
    NO_ERROR,
    REFUSED_STREAM,
    Header,
    Headers,
    Http2Protocol,
    NoStream,
    Role,
)
from tritonsched.tensors import Buffer, GrpcDone, GrpcReply

STREAMS_MAX = 1024  # calls in flight at once until Triton says how many it takes
HEADERS_MAX = 64  # of answers, remembered
DIAL_S = 5.0  # a connection that takes longer is taken for refused
_PROTOCOL_ERROR = 1
_PREFIX_BYTES = 5  # of a gRPC message: compressed or not, length
_OK = b"0"
CODE_NUMBERS = {code.name: str(code.value[0]).encode() for code in grpc.StatusCode}
_CODES = {str(code.value[0]).encode(): code.name for code in grpc.StatusCode}
_HTTP_CODES = {
    400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED",
    429: "UNAVAILABLE", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE",
}  # fmt: skip
_UNESCAPED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_UNKNOWN = "UNKNOWN"


class _Call:
    """One call on its way: what was sent, and what has come back."""

    __slots__ = ("body", "data", "done", "headers", "initial", "is_refused")

    def __init__(self, headers: list[Header], body: bytes, done: GrpcDone) -> None:
        self.headers = headers
        self.body = body
        self.done = done
        self.is_refused = False  # once: it is sent again one time
        self.initial: Headers = ()
        self.data: list[bytes] = []


class _Connection(Http2Protocol):
    """One connection to Triton. lost: hears the calls that it leaves unanswered."""

    def __init__(self, upstream: "H2Upstream") -> None:
        super().__init__(Role.CLIENT, streams_max=STREAMS_MAX)
        self._upstream = upstream
        self._calls: dict[int, _Call] = {}
        self.is_going_away = False

    def start(self, call: _Call) -> None:
        """Raises NoStream."""
        self._calls[self.request(call.headers, call.body)] = call

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        call = self._calls[stream_id]
        call.initial = headers
        if end:  # "Trailers-Only"
            self._finish(stream_id, headers)

    def on_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        self._calls[stream_id].data.append(data)
        if end:
            self._finish(stream_id, ())

    def on_trailers(self, stream_id: int, headers: Headers) -> None:
        self._finish(stream_id, headers)

    def on_closed(self, stream_id: int, code: int) -> None:
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        if code == REFUSED_STREAM:
            self._upstream.refused(call)
        elif code == _PROTOCOL_ERROR:
            self._upstream.unreadable(call)
        else:
            text = f"Received RST_STREAM with error code {code}"
            call.done(GrpcReply("INTERNAL" if code == NO_ERROR else _UNKNOWN, text, b""))

    def on_goaway(self, last_stream_id: int) -> None:
        self.is_going_away = True
        for stream_id in [number for number in self._calls if number > last_stream_id]:
            self._upstream.refused(self._calls.pop(stream_id))
        if not self._calls:
            self.abort()

    def on_lost(self, exc: Exception | None) -> None:
        calls, self._calls = self._calls, {}
        self._upstream.lost(self)
        for call in calls.values():
            call.done(self._upstream.unavailable())

    def _finish(self, stream_id: int, trailers: Headers) -> None:
        call = self._calls.pop(stream_id)
        if self.is_going_away and not self._calls:
            self.abort()
        reply = reply_of(call.initial, call.data, trailers)
        if reply.code != "OK" and is_connection_fault(grpc.StatusCode[reply.code], reply.details):
            call.done(self._upstream.unavailable())  # Triton is going down, and says so
        else:
            call.done(reply)


class H2Upstream:
    """A connection to Triton. address: host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._streams = GrpcUpstream(address)
        self._connection: _Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._waiting: list[_Call] = []
        self._heads: dict[str, list[Header]] = {}
        self._open = 0
        self._idle: asyncio.Event | None = None  # while it is waited for

    async def start(self) -> None:
        """Connections are made when they are needed."""
        await self._streams.start()

    async def close(self) -> None:
        """Let running calls finish within the bound, then close."""
        if self._open:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINISH_S):
                    await self._idle.wait()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._connection is not None:
            connection = self._connection
            connection.abort()
            await connection.gone.wait()
        await self._streams.close()

    def send(self, method: str, message: Buffer, done: GrpcDone, metadata: Metadata = ()) -> None:
        """One call, written before this returns if there is a connection; `done` hears the reply
        (an error status is one), or that nobody answered.
        """
        self._open += 1

        def counted(reply: GrpcReply | TritonUnavailable) -> None:
            self._open -= 1
            if not self._open and self._idle is not None:
                self._idle.set()
            done(reply)

        body = b"".join((b"\0", len(message).to_bytes(4, "big"), message))
        call = _Call(self._head(method, metadata), body, counted)
        self._start(call)

    async def unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> GrpcReply:
        """One call; an error status is a reply. Raises TritonUnavailable if the connection
        failed.
        """
        future: asyncio.Future[GrpcReply] = asyncio.get_running_loop().create_future()

        def done(reply: GrpcReply | TritonUnavailable) -> None:
            if future.done():  # the caller has left; the call was finished all the same
                return
            if isinstance(reply, TritonUnavailable):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(method, message, done, end_to_end(metadata))
        return await future

    def stream(
        self,
        method: str,
        messages: AsyncIterator[bytes],
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> Any:  # grpc.aio.StreamStreamCall[bytes, bytes]; the stubs do not export it
        """A bidirectional stream of raw messages; iterate it for the answers."""
        return self._streams.stream(method, messages, metadata)

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """A stream's status that Triton sent. Raises TritonUnavailable if the channel made it."""
        return self._streams.error_reply(error)

    # -- what a connection tells ------------------------------------------------------------------

    def refused(self, call: _Call) -> None:
        """Triton has not looked at it: once more, on a connection that takes it."""
        if call.is_refused:
            call.done(self.unavailable())
            return
        call.is_refused = True
        call.data, call.initial = [], ()
        asyncio.get_running_loop().call_soon(self._start, call)

    def unreadable(self, call: _Call) -> None:
        """Once more, over grpc.aio: nghttp2 refuses an answer whose words end in a space (RFC 9113
        8.2.1), and many of Triton's errors do. Inference is taken as repeatable.
        """
        path = dict(call.headers)[b":path"].decode()
        metadata = tuple(map(decode_header, call.headers[len(self._head(path, ())) :]))
        self._streams.send(path, call.body[_PREFIX_BYTES:], call.done, metadata)

    def lost(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None

    def unavailable(self) -> TritonUnavailable:
        text = f"Triton's gRPC port {self.address} does not answer"
        return TritonUnavailable(text, retry_after_ns=1_000_000_000)

    # -- the connection ---------------------------------------------------------------------------

    def _start(self, call: _Call) -> None:
        connection = self._connection
        if connection is not None and connection.is_open and not connection.is_going_away:
            try:
                connection.start(call)
            except NoStream:
                connection.is_going_away = True  # its stream numbers are used up
            else:
                return
        self._waiting.append(call)
        if self._dialling is None:
            self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(DIAL_S):
                _, connection = await loop.create_connection(
                    lambda: cast("Any", _Connection(self)), host.strip("[]"), int(port)
                )
        except (OSError, TimeoutError):
            pass
        finally:
            self._dialling = None
            waiting, self._waiting = self._waiting, []
        self._connection = connection
        for call in waiting:
            if connection is None:
                call.done(self.unavailable())
            else:
                self._start(call)

    def _head(self, method: str, metadata: Metadata) -> list[Header]:
        head = self._heads.get(method)
        if head is None:
            head = self._heads[method] = [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode()),
                (b":authority", self.address.encode()),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"tritonsched"),
            ]
        return [*head, *map(encode_header, metadata)] if metadata else head


def encode_header(pair: tuple[str, str | bytes]) -> Header:
    """Metadata as HTTP/2 has it: binary values in base64."""
    name, value = pair
    key = name.encode("latin-1", "replace")
    if name.endswith("-bin"):
        raw = value if isinstance(value, bytes) else value.encode()
        return key, base64.b64encode(raw).rstrip(b"=")
    return key, value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def decode_header(pair: Header) -> tuple[str, str | bytes]:
    """The other way. A binary value that is no base64 is passed on as it is."""
    name = pair[0].decode("latin-1")
    value = bytes(pair[1])
    if name.endswith("-bin"):
        with contextlib.suppress(binascii.Error):
            return name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    return name, value.decode("latin-1")


def escape(details: str) -> bytes:
    """The words of a status as `grpc-message` has them: percent-encoded UTF-8."""
    return quote_from_bytes(details.encode(errors="replace"), safe=_UNESCAPED).encode()


def reply_of(initial: Headers, data: list[bytes], trailers: Headers) -> GrpcReply:
    """Headers, body and trailers of a call as gRPC means them."""
    status, trailing = _said(tuple(trailers or initial))
    if status != _OK:
        return _error_of(initial, trailers or initial, status)
    body = data[0] if len(data) == 1 else b"".join(data)
    length = int.from_bytes(body[1:_PREFIX_BYTES], "big")
    if len(body) != _PREFIX_BYTES + length or body[:1] != b"\0":
        return GrpcReply("INTERNAL", "the answer is not one uncompressed message", b"")
    sent = _said(tuple(initial))[1] if trailers else ()
    return GrpcReply("OK", "", memoryview(body)[_PREFIX_BYTES:], sent, trailing)


@lru_cache(maxsize=HEADERS_MAX)
def _said(headers: tuple[Header, ...]) -> tuple[bytes | None, Metadata]:
    """Status and metadata, the same in nearly all answers."""
    return dict(headers).get(b"grpc-status"), end_to_end(map(decode_header, headers))


def _error_of(initial: Headers, last: Headers, status: bytes | None) -> GrpcReply:
    trailing = end_to_end(map(decode_header, last))
    if status is None:
        http = int(dict(initial).get(b":status", b"0"))
        code = _HTTP_CODES.get(http, _UNKNOWN)
        return GrpcReply(code, f"Received http2 header with status: {http}", b"", (), trailing)
    details = unquote_to_bytes(dict(last).get(b"grpc-message", b"")).decode(errors="replace")
    sent = () if last is initial else end_to_end(map(decode_header, initial))
    return GrpcReply(_CODES.get(status, _UNKNOWN), details, b"", sent, trailing)
