"""HTTP/1.1 bytes to requests. Rule: what comes is bounded in every part, however it is cut.

llhttp (package httptools) parses what is not known by heart (`http_heads`). It bounds nothing: it
keeps a header that never ends, and tells of it, of a trailer or of a chunk only when that is whole;
so what it is fed is counted, too.
Source: RFC 9112.
"""

import time
from abc import ABC, abstractmethod

import httptools

from tritonsched.errors import PayloadTooLarge, TritonschedError
from tritonsched.frontend import pieces
from tritonsched.frontend.gate import PROTOCOL, TOO_LARGE
from tritonsched.frontend.http_heads import Head, KnownHeads
from tritonsched.frontend.http_message import Headers, HttpRequest, text_of
from tritonsched.frontend.status import http_reply
from tritonsched.tensors import HttpReply

HEAD_BYTES_MAX = 256 * 1024  # all of a request's head; Triton has no bound in sum
FIELD_BYTES_MAX = 8191  # a header's name or value: Triton resets connections on longer ones
TARGET_BYTES_MAX = 8189  # and on longer paths
FIELDS_MAX = 1000  # headers and trailers of a request, however short
# Of a request that the parser reads, what is no body: its head, and a chunk's frame for each byte.
CHUNK_BYTES_MAX = 8
_NEVER_ALLOWED = "PATCH"  # a method that llhttp knows and Triton has for nothing


class HttpReceiver(ABC):
    """What a connection receives. heads: that its server knows. A subclass hears whole requests
    (`_received`), why it cannot be read any further (`_refuse`), and when a client waits to be told
    to go on (`_continue`).
    """

    def __init__(self, heads: KnownHeads, request_bytes_max: int) -> None:
        self._heads = heads
        self._limit = request_bytes_max
        self._parser = httptools.HttpRequestParser(self)
        self._owes_continue = False
        self._is_between = True  # no request has been received in part
        self._is_head = False  # of one whose head is not whole
        self._begins_here: bytes | None = None  # what was received, if a request begins with it
        self._known: Head | None = None  # of a request that is received without the parser
        self._reset()

    def _reset(self) -> None:
        self._received_ns = 0
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._head_bytes = 0
        self._fed_bytes = 0  # to the parser, after what the request begins with
        self._pieces: pieces.Pieces = []
        self._body_bytes = 0

    @abstractmethod
    def _received(self, request: HttpRequest) -> None:
        """A request is whole. Raises TritonschedError if it is one too many."""

    @abstractmethod
    def _refuse(self, reply: HttpReply, reason: str) -> None:
        """Read no further, and say why. reason: of those of the gate."""

    @abstractmethod
    def _continue(self) -> None:
        """If it is owed and its turn, tell the client to go on."""

    def _take(self, data: bytes) -> bytes:
        """Read what `data` begins with; returns what has to be looked at anew."""
        if self._known is None and self._is_between:
            self._known = self._heads.read(data)
            if self._known is None:
                self._begins_here = data
            else:
                self.on_message_begin()
                data = data[self._known.size_bytes :]
        try:
            if self._known is None:
                return self._parse(data)
            return self._receive(self._known, data)
        except TritonschedError as error:
            self._refuse(http_reply(error), TOO_LARGE)
        except httptools.HttpParserUpgrade as upgrade:
            return self._read_on(data[upgrade.args[0] :])
        except (httptools.HttpParserCallbackError, httptools.HttpParserError) as error:
            cause = error.__context__
            if isinstance(cause, TritonschedError):
                self._refuse(http_reply(cause), TOO_LARGE)
            else:
                self._refuse(HttpReply(400, "Bad Request", (), b""), PROTOCOL)
        return b""

    def _parse(self, data: bytes) -> bytes:
        """Raises PayloadTooLarge if too much of the request is no body."""
        self._fed_bytes += len(data)
        self._parser.feed_data(data)
        frame_max = HEAD_BYTES_MAX + CHUNK_BYTES_MAX * self._body_bytes
        if self._fed_bytes > frame_max and not self._is_between:
            raise PayloadTooLarge(f"over {frame_max} bytes of the request are no body")
        return b""

    def _receive(self, head: Head, data: bytes) -> bytes:
        """A piece of the body of a request whose head is known; what comes after."""
        missing = head.body_bytes - self._body_bytes
        rest = data[missing:]
        piece = data[:missing] if rest else data
        self._pieces.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes == head.body_bytes:
            self._known = None
            self._accept("POST", head.target, head.headers, keep_alive=True, version="1.1")
        return rest

    def _read_on(self, rest: bytes) -> bytes:
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
        return "\r\n".join((*head, "\r\n")).encode() + rest

    # -- httptools ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reset()
        self._received_ns = time.monotonic_ns()
        self._is_between = False
        self._is_head = self._known is None

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
        if self._head_bytes > HEAD_BYTES_MAX or len(self._headers) > FIELDS_MAX:
            raise PayloadTooLarge(
                f"the request's head exceeds {HEAD_BYTES_MAX} bytes or {FIELDS_MAX} headers"
            )

    def on_headers_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # it comes again
        self._is_head = False
        for name, value in self._headers:
            lower = name.lower()
            if lower == "content-length" and int(value) > self._limit:
                self._too_large()
            if lower == "transfer-encoding" and value.lower() != "chunked":
                raise ValueError(f"transfer coding {value!r}")  # llhttp would read its chunks
            if lower == "expect":  # Triton does not look what
                self._owes_continue = True
        self._continue()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limit:
            self._too_large()
        pieces.add(self._pieces, body)

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
            self._heads.learn(began, target, headers, self._body_bytes)
        self._owes_continue = False  # it did not wait
        version = max("1.0", self._parser.get_http_version())  # without one it is 0.9
        self._accept(method, target, headers, keep_alive=keep_alive, version=version)

    def _accept(
        self, method: str, target: str, headers: Headers, *, keep_alive: bool, version: str
    ) -> None:
        """A request is whole."""
        self._is_between = True
        body, self._pieces = pieces.joined(self._pieces), []
        self._received(
            HttpRequest(method, target, headers, body, self._received_ns, keep_alive, version)
        )
