"""Triton's HTTP port from this side: bytes there, bytes back, and nothing that was sent cut off."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.unit.frontend.wires import RawHttp, fixed, raw_http, unused_address
from tritonsched.backend.upstream_http import HttpUpstream, end_to_end
from tritonsched.errors import TritonUnavailable


@contextlib.asynccontextmanager
async def upstream(address: str) -> AsyncIterator[HttpUpstream]:
    made = HttpUpstream(address)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def test_a_request_arrives_as_it_was_given_and_nothing_is_added() -> None:
    async with raw_http(fixed("200 OK")) as server, upstream(server.address) as there:
        headers = (("Content-Type", "x/y"), ("ACCEPT-encoding", "gzip"), ("X-Twice", "1"))
        await there.request("POST", "/%73i//x?a=%20&b#c", (*headers, ("X-Twice", "2")), b"\0body")
        assert server.seen == [
            b"POST /%73i//x?a=%20&b#c HTTP/1.1\r\n"
            b"Host: " + server.address.encode() + b"\r\n"
            b"Content-Type: x/y\r\nACCEPT-encoding: gzip\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
            b"Content-Length: 5\r\n\r\n\0body"
        ]


async def test_a_header_that_comes_twice_spelt_in_two_ways_arrives_twice() -> None:
    async with raw_http(fixed("200 OK")) as server, upstream(server.address) as there:
        await there.request("GET", "/v2", (("X-Twice", "1"), ("y", ""), ("x-twice", "2")), b"")
        (seen,) = server.seen
        assert b"X-Twice: 1\r\n" in seen
        assert b"X-Twice: 2\r\n" in seen


async def test_an_empty_post_says_so_and_a_get_has_no_body() -> None:
    async with raw_http(fixed("200 OK")) as server, upstream(server.address) as there:
        await there.request("POST", "/v2/repository/index", (), b"")
        await there.request("GET", "/v2", (), b"")
        host = b"Host: " + server.address.encode()
        assert server.seen == [
            b"POST /v2/repository/index HTTP/1.1\r\n" + host + b"\r\nContent-Length: 0\r\n\r\n",
            b"GET /v2 HTTP/1.1\r\n" + host + b"\r\n\r\n",
        ]


async def test_an_answer_comes_back_as_it_was_sent() -> None:
    """Status, its words, headers in order, compressed bytes left compressed; a 500 is an answer."""
    answer = fixed(
        "500 Quite Wrong", "Content-Encoding: gzip", "X-B: 2", "x-a: 1", "Connection: keep-alive",
        body=b"not gzip at all",
    )  # fmt: skip
    async with raw_http(answer) as server, upstream(server.address) as there:
        reply = await there.request("GET", "/", (), b"")
        assert (reply.status, reply.reason) == (500, "Quite Wrong")
        assert reply.headers == (("Content-Encoding", "gzip"), ("X-B", "2"), ("x-a", "1"))
        assert reply.body == b"not gzip at all"


async def test_a_redirect_is_an_answer() -> None:
    answer = fixed("302 Found", "Location: /elsewhere")
    async with raw_http(answer) as server, upstream(server.address) as there:
        assert (await there.request("GET", "/", (), b"")).status == 302
        assert len(server.seen) == 1


def test_what_a_connection_says_for_itself_does_not_go_on() -> None:
    hops = (
        "Connection", "keep-alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "EXPECT",
        "Host", "Content-Length", "Proxy-Authorization", "proxy-authenticate",
    )  # fmt: skip
    kept = (("Content-Encoding", "gzip"), ("Authorization", "a"), ("traceparent", "b"))
    assert end_to_end((*((name, "x") for name in hops), *kept)) == kept
    assert end_to_end((("x-bytes", b"\xe9"),)) == (("x-bytes", "é"),)


async def test_nobody_listening_is_unavailable_with_a_hint_and_the_address() -> None:
    address = await unused_address()
    async with upstream(address) as there:
        with pytest.raises(TritonUnavailable, match=address) as caught:
            await there.request("GET", "/", (), b"")
        assert caught.value.retry_after_ns
        with pytest.raises(TritonUnavailable, match=address):
            async with there.stream("POST", "/", (), b""):
                pass


async def hang_up(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def half(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
    writer.close()


async def nonsense(_request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\0\1\2\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("answer", [hang_up, half, nonsense])
async def test_a_broken_answer_is_unavailable_and_the_next_call_connects_anew(
    answer: object,
) -> None:
    answers = iter([answer, fixed("200 OK")])

    async def next_answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await next(answers)(request, writer)  # type: ignore[operator]  # one of the above

    async with raw_http(next_answer) as server, upstream(server.address) as there:
        with pytest.raises(TritonUnavailable):
            await there.request("POST", "/", (), b"x")
        assert (await there.request("POST", "/", (), b"x")).status == 200


class Gate:
    """An answer that waits to be let through."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.answered = asyncio.Event()

    async def __call__(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        self.reached.set()
        await self.opened.wait()
        await fixed("200 OK", body=b"late")(request, writer)
        await writer.drain()
        self.answered.set()


async def test_a_call_is_finished_though_its_caller_has_left() -> None:
    """Triton sees no disconnect, and closing waits for the answer."""
    gate = Gate()
    async with raw_http(gate) as server:
        there = HttpUpstream(server.address)
        await there.start()
        caller = asyncio.ensure_future(there.request("POST", "/", (), b"x"))
        await gate.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        closing = asyncio.ensure_future(there.close())
        gate.opened.set()
        await closing
        assert gate.answered.is_set()


async def test_closing_gives_up_a_call_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonsched.backend.upstream_http.FINISH_S", 0.01)
    gate = Gate()
    async with raw_http(gate) as server:
        there = HttpUpstream(server.address)
        await there.start()
        caller = asyncio.ensure_future(there.request("POST", "/", (), b"x"))
        await gate.reached.wait()
        await there.close()
        with pytest.raises((asyncio.CancelledError, TritonUnavailable)):
            await caller


# -- streams ----------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Pieces:
    """An answer in pieces, each sent when it is asked for; `ended` when all are out."""

    def __init__(self, *pieces: bytes, last: bytes = b"0\r\n\r\n") -> None:
        self.pieces = pieces
        self.last = last
        self.more = asyncio.Semaphore(0)
        self.ended = asyncio.Event()

    async def __call__(self, _request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for piece in self.pieces:
            await self.more.acquire()
            writer.write(chunk(piece))
        await self.more.acquire()
        writer.write(self.last)
        await writer.drain()
        if not self.last:
            writer.close()
        self.ended.set()


async def test_a_stream_is_passed_on_piece_by_piece() -> None:
    """The next piece is not even sent before the one before it was read here."""
    answer = Pieces(b"one", b"two")
    async with raw_http(answer) as server, upstream(server.address) as there:
        async with there.stream("POST", "/v2/models/m/generate_stream", (), b"{}") as reply:
            assert (reply.status, reply.headers) == (200, (("Content-Type", "text/event-stream"),))
            got = []
            answer.more.release()
            async for piece in reply.chunks:
                got.append(piece)
                answer.more.release()
        assert got == [b"one", b"two"]


async def test_a_stream_that_breaks_off_is_unavailable_after_what_came() -> None:
    answer = Pieces(b"one", last=b"")
    answer.more.release()
    async with (
        raw_http(answer) as server,
        upstream(server.address) as there,
        there.stream("POST", "/", (), b"") as reply,
    ):
        assert await anext(aiter(reply.chunks)) == b"one"
        answer.more.release()
        with pytest.raises(TritonUnavailable):
            await anext(aiter(reply.chunks))


async def test_a_stream_nobody_reads_any_more_is_drained_to_its_end() -> None:
    """Triton can send the rest: it sees no disconnect."""
    answer = Pieces(b"one", b"two", b"three")
    async with raw_http(answer) as server, upstream(server.address) as there:
        async with there.stream("POST", "/", (), b"") as reply:
            answer.more.release()
            assert await anext(aiter(reply.chunks)) == b"one"
        for _ in range(3):
            answer.more.release()
        await answer.ended.wait()
        assert not server.lost.is_set()


async def test_a_stream_whose_caller_leaves_before_the_first_piece_is_drained_too() -> None:
    gate = Gate()
    async with raw_http(gate) as server, upstream(server.address) as there:
        caller = asyncio.ensure_future(_opened(there))
        await gate.reached.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.opened.set()
        await gate.answered.wait()
        assert not server.lost.is_set()


async def _opened(there: HttpUpstream) -> None:
    async with there.stream("POST", "/", (), b""):
        pass


async def test_closing_gives_up_what_is_still_being_drained() -> None:
    answer = Pieces(b"one", b"never asked for")
    async with raw_http(answer) as server:
        there = HttpUpstream(server.address)
        await there.start()
        async with there.stream("POST", "/", (), b"") as reply:
            answer.more.release()
            await anext(aiter(reply.chunks))
        await there.close()
        assert_nothing_left(server, there)


def assert_nothing_left(server: RawHttp, there: HttpUpstream) -> None:
    assert len(server.seen) == 1
    assert all(task.done() for task in there._drains)
