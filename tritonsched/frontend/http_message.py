"""HTTP/1.1's messages: a request as a noun, an answer as bytes. Rule: pure, one line a header.

Source: RFC 9112; what each version of HTTP says of the connection, and chunks for HTTP/1.0 too, as
Triton's libevhtp writes it.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from http import HTTPStatus

from tritonsched.tensors import Cancel, HttpReply

_NO_BODY = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}

Headers = tuple[tuple[str, str], ...]


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

    def __init__(  # noqa: PLR0917
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        received_ns: int,
        keep_alive: bool,
        version: str = "1.1",
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.received_ns = received_ns
        self.keep_alive = keep_alive
        self.version = version


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


def encode_reply(reply: HttpReply, *, keep_alive: bool, version: str = "1.1") -> bytes:
    """The whole answer in one piece."""
    length = len(reply.body)
    line = (reply.status, reply.reason, reply.headers)
    head = encode_head(*line, length=length, keep_alive=keep_alive, version=version)
    return b"".join((head, reply.body))


def encode_head(
    status: int,
    reason: str,
    headers: Headers,
    *,
    length: int | None = None,
    keep_alive: bool,
    version: str = "1.1",
) -> bytes:
    """Status line and headers; no length means chunked. version: of HTTP, the request's."""
    lines = [f"HTTP/{version} {status} {reason or _REASONS.get(status, '')}"]
    lines += [f"{name}: {_one_line(value)}" for name, value in headers]
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif status not in _NO_BODY:
        lines.append(f"Content-Length: {length}")
    if keep_alive != (version == "1.1"):  # what is not this version's own way is said
        lines.append("Connection: keep-alive" if keep_alive else "Connection: close")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def _one_line(value: str) -> str:
    """No header value can start another header (CWE-113)."""
    return value.replace("\r", " ").replace("\n", " ") if "\n" in value or "\r" in value else value


def text_of(value: bytes) -> str:
    """A header's value. UTF-8 stays the same bytes when it is sent on; else it is Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
