"""HTTP/1.1 connections byte for byte: pieces, order, bounds, garbage, other protocols."""

import asyncio
from typing import Any

import pytest
import uvloop

from tests.unit.frontend.http_client import connected
from tests.unit.frontend.http_setup import INFER, LIMIT, STREAM, Events, Gate, serving
from tests.unit.frontend.services import (
    Service,
    always,
    http_reply,
)
from tritonsched.frontend.http_protocol import PIPELINE_MAX
from tritonsched.frontend.http_receiver import FIELD_BYTES_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX


async def test_a_connection_stays_open_after_every_answer_and_error() -> None:
    async with serving() as there, connected(there.server.port) as client:
        for method, path, status in (("POST", INFER, 200), ("GET", "/x", 200), ("HEAD", "/", 405)):
            client.send(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
            reply = await client.reply() if method != "HEAD" else await client.head()
            assert (reply.status, "connection" in reply.headers) == (status, False)


async def test_a_connection_is_closed_when_the_client_wants_so() -> None:
    async with serving() as there, connected(there.server.port) as client:
        client.send(f"POST {INFER} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        assert (await client.reply()).headers["connection"] == "close"
        assert await client.is_closed()


async def test_http_1_0_closes_without_a_word_and_stays_open_with_one() -> None:
    async with serving() as there, connected(there.server.port) as client:
        kept = f"POST {INFER} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        client.send(kept.encode())
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200")
        assert b"\r\nConnection: keep-alive\r\n" in head
        await client.reader.readexactly(len((await there.ask("POST", INFER)).body))
        client.send(f"POST {INFER} HTTP/1.0\r\n\r\n".encode())
        assert "connection" not in (await client.reply()).headers
        assert await client.is_closed()


async def test_a_chunked_body_is_put_together() -> None:
    async with serving() as there, connected(there.server.port) as client:
        client.send(f"POST {INFER} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for piece in (b"3\r\nabc\r\n", b"1\r\n", b"d\r\n", b"0\r\n\r\n"):
            client.send(piece)
            await client.writer.drain()
        assert (await client.reply()).status == 200
        assert there.service.calls[0].raw == b"abcd"


async def test_a_request_may_come_byte_by_byte() -> None:
    async with serving() as there, connected(there.server.port) as client:
        message = f"POST {INFER} HTTP/1.1\r\nX-Long: value\r\nContent-Length: 2\r\n\r\nab".encode()
        for byte in message:
            client.send(bytes([byte]))
            await client.writer.drain()
        assert (await client.reply()).status == 200
        assert (there.service.calls[0].raw, there.service.calls[0].headers[0]) == (
            b"ab",
            ("X-Long", "value"),
        )


async def test_who_expects_a_go_ahead_gets_one() -> None:
    async with serving() as there, connected(there.server.port) as client:
        client.send(
            f"POST {INFER} HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
        )
        assert (await client.head()).status == 100
        client.send(b"ab")
        assert (await client.reply()).status == 200


async def test_a_go_ahead_does_not_overtake_the_answer_before_it() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there, connected(there.server.port) as client:
        client.ask("POST", INFER)
        client.send(b"GET /v2 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        await gate.reached.acquire()
        gate.open.release()
        assert (await client.reply()).status == 200
        assert client.interim == []
        client.send(b"x")
        assert (await client.reply()).body == b"theirs"
        assert client.interim == [100]


async def test_requests_sent_at_once_are_answered_one_by_one_in_order() -> None:
    """More than may wait: the rest is read when there is room again."""
    gate = Gate()
    many = 3 * PIPELINE_MAX
    async with serving(Service(gate)) as there, connected(there.server.port) as client:
        for number in range(many):
            client.ask("POST", f"/v2/models/m{number}/infer")
        for number in range(many):
            await gate.reached.acquire()
            assert [call.model for call in there.service.calls][-1] == f"m{number}"
            assert len(there.service.calls) == number + 1
            gate.open.release()
            assert (await client.reply()).status == 200


REFUSED = {
    "no HTTP": b"\0\1\2\3\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "a length that is none": b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "a chunk that is none": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_request_is_refused_and_the_connection_closed(name: str) -> None:
    async with serving() as there, connected(there.server.port) as client:
        client.send(REFUSED[name])
        assert (await client.reply()).status == 400
        assert await client.is_closed()
        assert there.triton.seen == []


LARGE = {
    "by its length": b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n",
    "in one chunk": b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
}


@pytest.mark.parametrize("name", LARGE)
async def test_a_body_over_the_limit_is_refused_while_it_is_still_sent(name: str) -> None:
    """The client can go on sending and still read why."""
    async with serving() as there, connected(there.server.port) as client:
        client.send(LARGE[name] % (INFER.encode(), 100 * LIMIT))
        client.send(b"\0" * (LIMIT + 1))
        reply = await client.reply()
        assert (reply.status, reply.headers["x-tritonsched-reason"]) == (413, "payload-too-large")
        assert reply.headers["connection"] == "close"
        client.send(b"\0" * LIMIT)
        await client.writer.drain()
        assert await client.is_closed()
        assert there.service.calls == []


async def test_a_body_at_the_limit_is_served() -> None:
    async with serving() as there:
        assert (await there.ask("POST", INFER, body=b"\0" * LIMIT)).status == 200


async def test_a_request_of_no_version_is_answered_as_one_of_1_0() -> None:
    """As Triton does; 0.9, which it would be, had no status line."""
    async with serving() as there, connected(there.server.port) as client:
        client.send(f"POST {INFER}?x=5TTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.0 200")


async def test_a_head_with_a_part_that_triton_would_reset_on_is_refused() -> None:
    """And one over our own bound for the whole."""
    longest = "X-Long: " + "x" * FIELD_BYTES_MAX
    async with serving() as there:
        assert (await there.ask("POST", INFER, *[longest] * 4)).status == 200
        assert (await there.ask("POST", INFER, longest + "x")).status == 413
        assert (await there.ask("POST", INFER, "x" * (FIELD_BYTES_MAX + 1) + ": x")).status == 413
        target = "/" + "x" * (TARGET_BYTES_MAX - 1)
        assert (await there.ask("POST", target)).status == 200
        assert (await there.ask("POST", target + "x")).status == 413
        count = HEAD_BYTES_MAX // FIELD_BYTES_MAX + 1
        assert (await there.ask("POST", INFER, *[longest] * count)).status == 413


async def test_another_transfer_coding_is_refused_because_its_end_is_a_guess() -> None:
    async with serving() as there:
        reply = await there.ask("POST", INFER, "Transfer-Encoding: gzip, chunked")
        assert reply.status == 400


async def test_garbage_does_not_take_the_answers_of_the_requests_before_it() -> None:
    gate = Gate()
    async with serving(Service(gate)) as there, connected(there.server.port) as client:
        client.ask("POST", INFER)
        client.ask("POST", INFER)
        client.send(b"\0garbage\r\n\r\n")
        for _ in range(2):
            await gate.reached.acquire()
            gate.open.release()
            assert (await client.reply()).status == 200
        assert (await client.reply()).status == 400
        assert await client.is_closed()


async def test_who_asks_for_another_protocol_is_answered_in_this_one() -> None:
    """Java's client asks so with its first request."""
    async with serving() as there, connected(there.server.port) as client:
        headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
        for body in (b"ab", b""):
            client.ask("POST", INFER, *headers, body=body)
            assert (await client.reply()).status == 200
        client.ask("POST", INFER, *headers, "Expect: 100-continue")
        assert (await client.reply()).status == 200
        assert client.interim == [100]
        assert [call.raw for call in there.service.calls] == [b"ab", b"", b""]
        client.send(b"CONNECT elsewhere:80 HTTP/1.1\r\n\r\n")
        assert (await client.reply()).body == b"theirs"


async def test_no_value_can_start_another_header() -> None:
    """An answer's header with a line break in it (CWE-113)."""
    answer = http_reply(headers=(("X-A", "1\r\nX-B: 2"),))
    async with serving(Service(always(answer))) as there:
        assert (await there.ask("POST", INFER)).headers["x-a"] == "1  X-B: 2"


# -- the loop it really runs on ---------------------------------------------------------------


async def whole_exchange() -> list[int]:
    """Requests at once, a chunked stream, a refusal: all that touches the transport."""
    events = Events(b"data: 1\n\n")
    statuses = []
    async with serving(triton=events) as there, connected(there.server.port) as client:
        for _ in range(PIPELINE_MAX + 2):
            client.ask("POST", INFER)
        client.ask("POST", STREAM, body=b"{}")
        statuses += [(await client.reply()).status for _ in range(PIPELINE_MAX + 2)]
        for _ in range(2):
            events.more.release()
        statuses.append((await client.reply()).status)
        client.send(b"\0garbage\r\n\r\n")
        statuses.append((await client.reply()).status)
        assert await client.is_closed()
    return statuses


async def test_the_same_on_uvloop() -> None:
    def run() -> Any:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(whole_exchange())

    expected = [200] * (PIPELINE_MAX + 3) + [400]
    assert await asyncio.to_thread(run) == expected
    assert await whole_exchange() == expected
