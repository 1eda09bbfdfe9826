"""HTTP/2 as an asyncio.BufferedProtocol: bytes to events of streams and back. Rule: the only
importer of ngh2.

libnghttp2 (package ngh2, sans-I/O, MIT) does framing, HPACK, flow control and most limits against
floods; this file adds the transport: what is queued is written at once, reading stops when nobody
reads what we write, and windows so large that a message seldom waits for a WINDOW_UPDATE; and it
counts frames that keep us busy with nothing, of which libnghttp2 takes any number.
grpc's own Python transport costs ten times the CPU a call (performance study B1).
Source: RFC 9113.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import cast

import ngh2
from ngh2 import Role
from ngh2 import events as event
from ngh2.events import (
    DataReceived,
    RequestReceived,
    ResponseReceived,
    StreamClosed,
    TrailersReceived,
)

from tritonsched.read_buffer import BUFFER

__all__ = [
    "CANCEL", "NO_ERROR", "REFUSED_STREAM", "Header", "Headers", "Http2Protocol", "NoStream",
    "Role",
]  # fmt: skip

Header = tuple[bytes, bytes]
Headers = Sequence[Header]
Buffer = bytes | bytearray | memoryview

WINDOW_BYTES = (1 << 31) - 1  # the largest: messages are bounded by their own limit
FRAME_BYTES_MAX = (1 << 24) - 1  # the largest: grpc's clients then send a picture in a few frames
HEADER_LIST_BYTES_MAX = 64 * 1024
HEADERS_MAX = 1024  # of a list
CONTINUATIONS_MAX = 8  # of a list: more than its bytes need
ACKS_MAX = 1000  # of SETTINGS and PING that wait to be written
GLITCHES_BURST, GLITCHES_PER_S = 10_000, 330  # libnghttp2's: frames that no sane client sends
# Frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, empty DATA): so many at once and a
# second, beyond those that a call, a message to it and its bytes give reason for. 1.5 µs each.
FRAMES_BURST, FRAMES_PER_S = 4_000, 1_000
FRAMES_PER_CALL = 16
FRAMES_PER_MESSAGE = 4  # of a stream: grpc's clients open both windows for each, and send PINGs
ANSWER_BITS_PER_FRAME = 10  # one for each KiB
SETTINGS_FRAMES = 100  # what SETTINGS count: each may change the windows of all streams
UNSENT_BYTES_MAX = 256 * 1024  # of a stream; then whoever writes it waits
# A client resets each stream whose deadline passed, so an overload is not an attack (rapid reset):
# libnghttp2's own 33 a second would end the connection, and with it all its other calls.
RESETS_BURST, RESETS_PER_S = 10_000, 5_000
REFUSED_STREAM = int(ngh2.ErrorCode.REFUSED_STREAM)
CANCEL = int(ngh2.ErrorCode.CANCEL)
NO_ERROR = int(ngh2.ErrorCode.NO_ERROR)
_CALM = int(ngh2.ErrorCode.ENHANCE_YOUR_CALM)
_FLOODS = (ngh2.ErrorCode.ENHANCE_YOUR_CALM, ngh2.ErrorCode.INTERNAL_ERROR)  # libnghttp2 says both
_GOAWAY = bytes((0, 0, 8, 7, 0, 0, 0, 0, 0))  # a frame without debug data (RFC 9113 6.8)
_LAST_STREAM = bytes((0x7F, 0xFF, 0xFF, 0xFF))


class Http2Protocol:
    """One connection; subclasses hear what its streams say by the `on_…` methods.

    It has a BufferedProtocol's methods and not its name: a compiled class (mypyc) has no base
    that is not. uvloop asks for the methods; asyncio's own loop calls `data_received`.

    role: which end we are. streams_max: what the other end may open at once. stream_window_bytes:
    what it may send on a stream before `taken` says more; by default all is taken as it comes.
    gone: set at the end. is_greeted: the other end has shown that it speaks HTTP/2.
    """

    def __init__(
        self, role: Role, *, streams_max: int, stream_window_bytes: int = WINDOW_BYTES
    ) -> None:
        config = ngh2.Configuration(
            auto_window_update=stream_window_bytes == WINDOW_BYTES,
            peer_max_concurrent_streams=streams_max,
            max_inbound_header_list_size=HEADER_LIST_BYTES_MAX,
            max_inbound_header_count=HEADERS_MAX,
            max_continuations=CONTINUATIONS_MAX,
            max_outbound_ack=ACKS_MAX,
            glitch_rate_limit=(GLITCHES_BURST, GLITCHES_PER_S),
            stream_reset_rate_limit=(RESETS_BURST, RESETS_PER_S),
        )
        self._settings = {
            ngh2.Setting.ENABLE_PUSH: 0,
            ngh2.Setting.MAX_CONCURRENT_STREAMS: streams_max,
            ngh2.Setting.INITIAL_WINDOW_SIZE: stream_window_bytes,
            ngh2.Setting.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
        }
        self._engine = ngh2.Connection(role, config)
        self._transport: asyncio.Transport | None = None
        self._buffer = BUFFER.view
        self._is_flush_due = False
        self._is_hearing = False
        self._has_written = False  # since we began to hear
        self._is_leaving = False  # no new streams are taken
        self._is_announced = False  # that they will not be
        self._empty_frames = 0  # less what they had reason for
        self._is_over = False  # it is being closed, whoever wanted that
        self._frames_max = FRAMES_BURST if role is Role.SERVER else sys.maxsize
        self._judged_ns = time.monotonic_ns()
        self.is_greeted = False
        self._is_read = True  # what we write, by the other end
        self._moved = asyncio.Event()  # something was heard or sent, or all is over
        self._is_awaited = False  # that it moves
        self.gone = asyncio.Event()

    # -- asyncio.BufferedProtocol ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._engine.initiate_connection(self._settings)
        self._engine.set_local_window_size(WINDOW_BYTES)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.gone.set()
        self._moved.set()
        self.on_lost(exc)

    def eof_received(self) -> None:
        """Who says no more is not answered any more, either."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self._buffer[:nbytes])

    def data_received(self, data: Buffer) -> None:
        """What was read; it is not looked at any more when this returns."""
        try:
            self._engine.receive_data(data)
        except ngh2.NGH2Error as error:
            self._break_off(isinstance(error, ngh2.DenialOfServiceError))
            return
        self._is_hearing = True
        self._has_written = False
        self._hear_all()
        self._is_hearing = False
        self.flush()
        if self._has_written:  # streams that we reset ourselves are closed when that is written
            self._hear_all()
        if self._is_awaited:
            self._is_awaited = False
            self._moved.set()
        if self._empty_frames > self._frames_max and not self._is_over:
            self._judge_frames()

    def _hear_all(self) -> None:
        for happened in self._engine.events():
            if type(happened) is DataReceived:
                data = happened.data
                if not data:
                    self._empty_frames += 1
                self.on_data(happened.stream_id, data, end=happened.end_stream)
            elif type(happened) is RequestReceived or type(happened) is ResponseReceived:
                self._empty_frames -= FRAMES_PER_CALL
                self.on_headers(happened.stream_id, happened.headers, end=happened.end_stream)
            elif type(happened) is StreamClosed:
                self.on_closed(happened.stream_id, happened.error_code)
            elif type(happened) is TrailersReceived:
                self.on_trailers(happened.stream_id, happened.headers)
            else:
                self._hear_control(happened)

    def pause_writing(self) -> None:
        """Who does not read is not read from."""
        self._is_read = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_read = True
        self._moved.set()
        if self._transport is not None:
            self._transport.resume_reading()

    def _hear_control(self, happened: event.Event) -> None:
        self._empty_frames += 1
        match happened:
            case event.GoAwayReceived():
                self.on_goaway(happened.last_stream_id)
            case event.SettingsReceived():
                self.is_greeted = True
                self._empty_frames += SETTINGS_FRAMES
            case event.PingAcknowledged():
                if self._is_announced:
                    self._leave()
            case event.ConnectionClosed():
                self._is_over = True
                if happened.error_code != NO_ERROR:  # a GOAWAY of ours: the protocol was broken
                    self.on_broken(is_flood=happened.error_code in _FLOODS)
                self.abort(ConnectionError("HTTP/2 ended the connection"))
            case _:
                pass

    def bound_credit(self) -> None:
        """Frames may be given reason for in advance, but not any number; called now and then."""
        self._empty_frames = max(-FRAMES_BURST, self._empty_frames)

    def _judge_frames(self) -> None:
        """So many that carry nothing: has their time earned them?"""
        now_ns = time.monotonic_ns()
        earned = (now_ns - self._judged_ns) * FRAMES_PER_S // 1_000_000_000
        self._judged_ns = now_ns
        self._empty_frames -= min(earned, FRAMES_BURST)
        if self._empty_frames > self._frames_max:
            self._break_off(is_flood=True)

    def _break_off(self, is_flood: bool) -> None:
        """The other end broke the rules: say so, and close."""
        if self._is_over or self._transport is None:
            return
        self._is_over = True
        self.on_broken(is_flood=is_flood)
        with contextlib.suppress(ngh2.NGH2Error):  # it may be beyond words
            self._transport.write(self._engine.data_to_send())
        if is_flood:
            self._transport.write(_GOAWAY + _LAST_STREAM + _CALM.to_bytes(4, "big"))
        self.abort(ConnectionError("HTTP/2 was broken"))

    # -- what a subclass hears ------------------------------------------------------------------

    def on_headers(self, stream_id: int, headers: Headers, *, end: bool) -> None:
        """A request's or an answer's headers. end: nothing else follows."""

    def on_data(self, stream_id: int, data: bytes, *, end: bool) -> None:
        """A piece of the body."""

    def on_trailers(self, stream_id: int, headers: Headers) -> None:
        """The last of a stream."""

    def on_closed(self, stream_id: int, code: int) -> None:
        """The stream is gone from both sides; code: NO_ERROR, or why it was reset."""

    def on_goaway(self, last_stream_id: int) -> None:
        """The other end takes no new streams, and none above this one."""

    def on_broken(self, *, is_flood: bool) -> None:
        """The other end broke the protocol, or flooded us: the connection ends."""

    def on_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and all its streams with it."""

    # -- what a subclass says -------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def is_idle(self) -> bool:
        """Nothing runs; a connection that said goodbye is closed then."""
        return True

    def request(self, headers: Iterable[Header], body: bytes) -> int:
        """Send a whole request; returns its stream. Raises NoStream if there can be none."""
        try:
            stream_id = self._engine.send_request(headers)
            self._engine.send_data(stream_id, body, end_stream=True)
        except ngh2.NGH2Error as error:
            raise NoStream(str(error)) from error
        self.flush()
        return stream_id

    def respond(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Queue an answer's headers; nothing if the stream is gone."""
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_response(stream_id, headers, end_stream=end)

    def body(self, stream_id: int, data: bytes) -> None:
        """Queue a piece of its body."""
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_data(stream_id, data)
            self._empty_frames -= FRAMES_PER_MESSAGE

    def end(self, stream_id: int, trailers: Headers) -> None:
        """Queue its trailers, the last of it."""
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_trailers(stream_id, trailers)

    def answer(self, stream_id: int, headers: Headers, body: bytes, trailers: Headers) -> None:
        """Queue a whole answer; nothing if the stream is gone."""
        engine = self._engine
        try:  # a suppress would cost as much as each of these
            engine.send_response(stream_id, headers)
            engine.send_data(stream_id, body)
            engine.send_trailers(stream_id, trailers)
        except ngh2.NGH2Error:
            pass

    def reset(self, stream_id: int, code: int) -> None:
        """End a stream after what was queued for it, unless that waits for the other end."""
        self._write()
        with contextlib.suppress(ngh2.NGH2Error):
            if not self._engine.queued_body_size(stream_id):
                self._engine.reset_stream(stream_id, code)

    def taken(self, stream_id: int, size_bytes: int) -> None:
        """So much of a stream's body has been taken: the other end may send more."""
        try:  # noqa: SIM105  # as in `answer`
            self._engine.acknowledge_received_data(size_bytes, stream_id)
        except ngh2.NGH2Error:
            pass

    async def room(self, stream_id: int) -> None:
        """Wait until most of a stream's body has left, or nobody will read it any more."""
        while self.is_open and not (
            self._is_read and self._engine.queued_body_size(stream_id) <= UNSENT_BYTES_MAX
        ):
            self._moved.clear()
            self._is_awaited = True
            await self._moved.wait()

    def say_goodbye(self) -> None:
        """Have the other end open no new streams; what runs goes on, and then we close.

        It is told first that this is coming, and of the last stream when it must have heard: what
        it had opened meanwhile is served, too (RFC 9113 6.8).
        """
        if self._is_announced:
            return
        self._is_announced = True
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_shutdown_notice()
            self._engine.ping()
        self.flush()

    def _leave(self) -> None:
        self._is_leaving = True
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_goaway(NO_ERROR)
        self.flush()

    def close(self) -> None:
        """Say goodbye and close now; the other end can tell what was not looked at."""
        self._leave()
        self.abort(ConnectionError("closed"))

    @property
    def waiting_bytes(self) -> int:
        """Of bodies, for the other end's windows."""
        return self._engine.queued_body_size()

    @property
    def unsent_bytes(self) -> tuple[int, int]:
        """That wait for the other end: to read its connection, and to open its windows."""
        if self._transport is None:
            return 0, 0
        return self._transport.get_write_buffer_size(), self.waiting_bytes

    def flush_soon(self) -> None:
        """Write what is queued at the end of this turn."""
        if not (self._is_flush_due or self._is_hearing):
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def abort(self, error: Exception | None = None) -> None:
        """Close now; what is unsent may be lost."""
        if self._transport is not None:
            self._transport.close() if error is not None else self._transport.abort()

    def flush(self) -> None:
        """Write what is queued; what is said while we hear is written together, after it."""
        if self._is_hearing:
            return
        self._is_flush_due = False
        self._write()
        is_over = self._is_leaving and self.is_idle and not self._engine.queued_body_size()
        if is_over and self._transport is not None:
            self._transport.close()

    def _write(self) -> None:
        if self._transport is None:
            return
        try:
            data = self._engine.data_to_send()
        except ngh2.NGH2Error as error:  # the connection is beyond words
            self.abort(error)
            return
        if data:
            self._has_written = True
            self._transport.write(data)
            self._empty_frames -= len(data) >> ANSWER_BITS_PER_FRAME


class NoStream(Exception):
    """The connection takes no new stream: it is going away, or has too many."""
