"""gRPC's framing: what a call's headers say, messages cut out of bodies, compression.

Rule: pure. A message is one byte (compressed or not), four bytes of length, and its bytes.
Source: grpc/doc/PROTOCOL-HTTP2.md and compression.md.
"""

import zlib

from tritonsched.backend.upstream_grpc import end_to_end
from tritonsched.backend.upstream_h2 import decode_header
from tritonsched.errors import ClientError, PayloadTooLarge
from tritonsched.http2 import Headers
from tritonsched.tensors import Buffer

PREFIX_BYTES = 5
_UNITS_NS = {
    b"H": 3_600_000_000_000, b"M": 60_000_000_000, b"S": 1_000_000_000,
    b"m": 1_000_000, b"u": 1_000, b"n": 1,
}  # fmt: skip
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class Head:
    """What a call's headers say. said: themselves, if they are remembered. kept: its metadata that
    goes on. is_grpc: by its content type.
    """

    __slots__ = ("encoding", "is_grpc", "kept", "metadata", "method", "said")

    def __init__(self, headers: Headers) -> None:
        self.said: Headers = ()
        pairs = [decode_header(pair) for pair in headers]
        named = dict(pairs)
        self.method = str(named.get(":path", ""))
        self.encoding = str(named.get("grpc-encoding", "identity"))
        self.is_grpc = str(named.get("content-type", "")).startswith("application/grpc")
        self.metadata = tuple([pair for pair in pairs if not pair[0].startswith(":")])
        self.kept = end_to_end(self.metadata)


class _NoMessage(ClientError):
    """gRPC's framing is broken."""

    grpc_code = "INTERNAL"


class _NoCoding(ClientError):
    """A compression that we do not have, or garbage instead of one."""

    grpc_code = "UNIMPLEMENTED"


def framed(message: Buffer) -> bytes:
    """An uncompressed message as it is sent."""
    return b"".join((b"\0", len(message).to_bytes(4, "big"), message))


def is_one_message(body: bytes) -> bool:
    """It is one, maybe compressed, and nothing else."""
    return len(body) >= PREFIX_BYTES and len(body) == announced_bytes(body)


def announced_bytes(body: bytes | bytearray) -> int:
    """What the first message takes with its prefix; less than a prefix if not even that is there.

    An announcement is known before its message: one too long is refused unheard.
    """
    if len(body) < PREFIX_BYTES:
        return 0
    return PREFIX_BYTES + int.from_bytes(body[1:PREFIX_BYTES], "big")


def message_of(body: bytes, encoding: str, size_max: int) -> bytes:
    """The one message in a body. Raises PayloadTooLarge, ClientError."""
    if not is_one_message(body):
        raise _NoMessage("the call's body is not one message")
    if body[0] == 0:
        return body[PREFIX_BYTES:]
    return inflate(body[PREFIX_BYTES:], encoding, size_max)


def timeout_of(value: bytes) -> int | None:
    """`grpc-timeout` in ns; None for what is none."""
    unit = _UNITS_NS.get(value[-1:])
    digits = value[:-1]
    return int(digits) * unit if unit and digits.isdigit() else None


def inflate(data: bytes, encoding: str, size_max: int) -> bytes:
    """A compressed message. Raises PayloadTooLarge beyond size_max, ClientError."""
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise _NoCoding(f"compression '{encoding[:32]}' is unknown; use gzip, deflate or identity")
    engine = zlib.decompressobj(bits)
    try:
        message = engine.decompress(data, size_max + 1)
    except zlib.error as error:
        raise _NoMessage(f"the message is no {encoding}: {error}") from error
    if len(message) > size_max:
        raise PayloadTooLarge(f"the message inflates beyond {size_max} bytes")
    if not engine.eof:
        raise _NoMessage(f"the message is a part of a {encoding} stream")
    return message


class Cutter:
    """Messages cut out of a body that comes in pieces, as of a stream. size_max: of one message."""

    def __init__(self, encoding: str, size_max: int) -> None:
        self._encoding = encoding
        self._size_max = size_max
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._wanted_bytes = PREFIX_BYTES

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now, in order. Raises PayloadTooLarge, ClientError."""
        self._pieces.append(data)
        self._size_bytes += len(data)
        if self._size_bytes < self._wanted_bytes:
            return []
        body = b"".join(self._pieces)
        messages = []
        start = 0
        while len(body) - start >= (end := self._announced(body, start)):
            messages.append(message_of(body[start : start + end], self._encoding, self._size_max))
            start += end
        rest = body[start:]
        self._pieces = [rest] if rest else []
        self._size_bytes = len(rest)
        self._wanted_bytes = end
        return messages

    def _announced(self, body: bytes, start: int) -> int:
        """Bytes of the message there, or of its prefix while that is not whole."""
        size = announced_bytes(body[start : start + PREFIX_BYTES])
        if size > self._size_max + PREFIX_BYTES:
            raise too_large(self._size_max)
        return size or PREFIX_BYTES


def too_large(size_max: int) -> PayloadTooLarge:
    """A message over the limit."""
    return PayloadTooLarge(f"the message exceeds {size_max} bytes; raise limits.request_mib_max")
