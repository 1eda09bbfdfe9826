"""A request of the differential table made odd. Rule: pure; the same Random, the same request.

HTTP: bytes of the JSON head, members of it, headers, or any byte at all; lengths are set right
again, except in the last case, because two servers that wait for more tell nothing. gRPC: bytes of
the message, or two messages joined, which protobuf reads as one.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from tests.differential.cases import HEAD, GrpcCase, HttpCase
from tests.differential.wire import HttpAsk

CRLF = b"\r\n"
ODD_BYTES = (
    b"\0", b"\xff", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\r\n", b"0",
    b"-", b"1e9", b"null", b"true", b"\xc3\xa9", b"\\u0000", b"\\ud800", b"\x7f", b"\x80\x80\x00",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 8, 1.5, 1.0, "", "1", "IN", "OUT", "FP32", "BYTES", "INT32",
    [], [1], [1, 2], [2, 2], [[1, 2]], {}, {"a": 1}, 1 << 31, 1 << 63, -(1 << 63), "\0", "é",
    {"binary_data": True}, {"binary_data": False}, {"binary_data_size": 8}, {"classification": 1},
)  # fmt: skip
ODD_HEADERS = (
    HEAD, "Content-Encoding", "Accept-Encoding", "Connection", "Expect", "Content-Type", "Host",
    "X-Any", "traceparent", "TE", "Trailer", "Upgrade", "Keep-Alive",
)  # fmt: skip
ODD_HEADER_VALUES = (
    "", "0", "1", "-1", "gzip", "deflate", "identity", "gzip;q=0.5", "close", "keep-alive", "h2c",
    "100-continue", "x", "é", "a, b", "*", "99999999999",
)  # fmt: skip


def mutated(case: HttpCase | GrpcCase, others: list[GrpcCase], random: Random) -> Any:
    """One odd relative of the case; it may by chance be the case itself."""
    if isinstance(case, GrpcCase):
        return _grpc(case, random.choice(others), random)
    return _http(case.ask.steps[0], random)


def _grpc(case: GrpcCase, other: GrpcCase, random: Random) -> GrpcCase:
    message = case.ask.messages[0] if case.ask.messages else b""
    spare = other.ask.messages[0] if other.ask.messages else b""
    ways: list[Callable[[], bytes]] = [
        lambda: _bytes(message, random),
        lambda: message + spare,
        lambda: _bytes(message + spare, random),
        lambda: message[: random.randint(0, len(message))] + spare,
    ]
    return GrpcCase(replace(case.ask, messages=(random.choice(ways)(),)))


def _http(data: bytes, random: Random) -> HttpCase:
    head, _, body = data.partition(CRLF * 2)
    lines = head.split(CRLF)
    way = random.random()
    if way < 0.1:
        return _one(_bytes(data, random))
    if way < 0.3:
        lines = _headers(lines, random)
    elif way < 0.6:
        body = _structure(lines, body, random)
    else:
        body = _bytes(body, random)
    kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
    return _one(CRLF.join((*kept, b"Content-Length: %d" % len(body), b"", body)))


def _one(data: bytes) -> HttpCase:
    return HttpCase(HttpAsk((data,)))


def _bytes(data: bytes, random: Random) -> bytes:
    """Up to three places changed: replaced, left out, put in or doubled."""
    made = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at = random.randint(0, len(made))
        end = min(len(made), at + random.choice((0, 1, 1, 2, 8)))
        made[at:end] = random.choice(
            (b"", random.choice(ODD_BYTES), bytes([random.randrange(256)]), bytes(made[at:end]) * 2)
        )
    return bytes(made)


def _headers(lines: list[bytes], random: Random) -> list[bytes]:
    """One header more, doubled or left out."""
    made = list(lines)
    name, value = random.choice(ODD_HEADERS), random.choice(ODD_HEADER_VALUES)
    at = random.randint(1, len(made))
    made[at:at] = [random.choice((f"{name}: {value}".encode(), *made[1:]))]
    if random.random() < 0.3:
        del made[random.randrange(1, len(made))]
    return made


def _structure(lines: list[bytes], body: bytes, random: Random) -> bytes:
    """A member of the JSON head changed; the header that tells its length is set right."""
    prefix = f"{HEAD}: ".encode()
    places = [at for at, line in enumerate(lines) if line.startswith(prefix)]
    told = lines[places[0]][len(prefix) :] if places else b""
    length = int(told) if told.isdigit() else len(body)
    try:
        head = json.loads(body[:length])
    except ValueError:
        return _bytes(body, random)
    text = json.dumps(_changed(head, random)).encode()
    if places and told != b"0":
        lines[places[0]] = prefix + str(len(text)).encode()
    return text + body[length:]


def _changed(value: Any, random: Random) -> Any:
    """Somewhere within, one value is another, one member missing or one more."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        name = random.choice(sorted(value))
        if random.random() < 0.15:
            return {key: inner for key, inner in value.items() if key != name}
        return value | {name: _changed(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        if random.random() < 0.15:
            return [*value, value[at]]
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    return random.choice(ODD_VALUES)
