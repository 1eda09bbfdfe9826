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
    """What a call's headers say. kept: its metadata that goes on."""

    __slots__ = ("encoding", "kept", "metadata", "method")

    def __init__(self, headers: Headers) -> None:
        pairs = [decode_header(pair) for pair in headers]
        named = dict(pairs)
        self.method = str(named.get(":path", ""))
        self.encoding = str(named.get("grpc-encoding", "identity"))
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


def end_of_first(body: bytes) -> int | None:
    """Where the first message of a body ends; None while it is not whole."""
    if len(body) < PREFIX_BYTES:
        return None
    end = PREFIX_BYTES + int.from_bytes(body[1:PREFIX_BYTES], "big")
    return end if end <= len(body) else None


def message_of(body: bytes, encoding: str, size_max: int) -> bytes:
    """The one message in a body. Raises PayloadTooLarge, ClientError."""
    if end_of_first(body) != len(body):
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
