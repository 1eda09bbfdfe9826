"""Heads that were parsed before: looked up only if they mean the same again."""

import pytest

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import INFER, serving
from tritonsched.frontend import http_heads
from tritonsched.frontend.http_heads import HEAD_BYTES_MAX, KnownHeads

PLAIN = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
HEADERS = (("Host", "a"), ("Content-Length", "2"))


def test_a_plain_head_is_known_again_and_no_other() -> None:
    heads = KnownHeads()
    assert heads.read(PLAIN + b"ab") is None
    heads.learn(PLAIN + b"ab", "/x", HEADERS, 2)
    known = heads.read(PLAIN + b"cd and more")
    assert known is not None
    assert (known.target, known.headers) == ("/x", HEADERS)
    assert (known.size_bytes, known.body_bytes) == (len(PLAIN), 2)
    for other in (PLAIN[:-1], b"\r\n" + PLAIN, PLAIN.replace(b"x", b"y"), b""):
        assert heads.read(other) is None


ODD = {
    "another method": (PLAIN.replace(b"POST", b"GET"), HEADERS, 2),
    "HTTP/1.0": (PLAIN.replace(b"1.1", b"1.0"), HEADERS, 2),
    "a line before it": (b"\r\n" + PLAIN, HEADERS, 2),
    "a folded line": (PLAIN.replace(b"a\r\n", b"a\r\n b\r\n"), HEADERS, 2),
    "no length": (PLAIN, HEADERS[:1], 2),
    "two lengths": (PLAIN, (*HEADERS, ("content-length", "2")), 2),
    "another length": (PLAIN, HEADERS, 3),
    "not whole": (PLAIN[:-2], HEADERS, 2),
    "too long": (PLAIN.replace(b"a", b"a" * HEAD_BYTES_MAX), HEADERS, 2),
    "chunks": (PLAIN.replace(b"Host", b"Transfer-Encoding"), (("Transfer-Encoding", "a"),), 2),
    "a go-ahead": (PLAIN, (("Expect", "100-continue"), HEADERS[1]), 2),
    "closing": (PLAIN, (("Connection", "x"), HEADERS[1]), 2),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_plain_is_parsed_each_time(name: str) -> None:
    data, headers, body_bytes = ODD[name]
    heads = KnownHeads()
    heads.learn(data, "/x", headers, body_bytes)
    assert heads._known == {}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_heads, "HEADS_MAX", 3)
    heads = KnownHeads()
    for number in range(10):
        target = f"/{number}"
        heads.learn(PLAIN.replace(b"/x", target.encode()), target, HEADERS, 2)
        assert heads.read(PLAIN.replace(b"/x", target.encode())) is not None
        assert len(heads._known) <= 3


@pytest.mark.parametrize("pieces", [1, 2, 3, 1000])
async def test_requests_with_a_known_head_arrive_whole_however_they_are_cut(pieces: int) -> None:
    """Three in a row, the second and third without the parser, then one that needs it."""
    head = f"POST {INFER} HTTP/1.1\r\nContent-Length: 5\r\n\r\n".encode()
    async with serving() as there, connected(there.server.port) as client:
        client.send(head + b"first")
        await client.reply()
        stream = head + b"two__" + head + b"three" + b"GET /v2 HTTP/1.1\r\n\r\n"
        step = -(-len(stream) // pieces)
        for start in range(0, len(stream), step):
            client.send(stream[start : start + step])
            await client.writer.drain()
        assert [(await client.reply()).status for _ in range(3)] == [200, 200, 200]
        assert [call.raw for call in there.service.calls] == [b"first", b"two__", b"three"]
        assert there.service.calls[1].headers == there.service.calls[0].headers
