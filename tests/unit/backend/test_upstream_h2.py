"""gRPC over libnghttp2: what only it has to care for. Promises kept by both: test_upstream_grpc."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.frontend.wires import Call, RawGrpc, serving
from tests.unit.test_http2 import Peer, peer
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.backend.upstream_h2 import (
    H2Upstream,
    decode_header,
    encode_header,
    reply_of,
)
from tritonsched.errors import TritonUnavailable
from tritonsched.http2 import CANCEL, NO_ERROR, REFUSED_STREAM
from tritonsched.tensors import GrpcReply

METHOD = f"{SERVICE}ModelInfer"
OK = ((b":status", b"200"), (b"content-type", b"application/grpc"))
DONE = ((b"grpc-status", b"0"),)


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def answer(there: Peer, stream_id: int, data: bytes) -> None:
    there.respond(stream_id, OK)
    there.data(stream_id, message(data))
    there.trailers(stream_id, DONE)


@pytest.fixture
async def triton() -> AsyncIterator[Peer]:
    async with peer() as made:
        yield made


@pytest.fixture
async def upstream(triton: Peer) -> AsyncIterator[H2Upstream]:
    made = H2Upstream(triton.address)
    await made.start()
    yield made
    triton.lose()
    await made.close()


async def test_a_request_leaves_within_send_once_there_is_a_connection(
    triton: Peer, upstream: H2Upstream
) -> None:
    """Nothing has to be awaited for it; the answer comes by `done`."""
    first = asyncio.ensure_future(upstream.unary(METHOD, b"1"))
    answer(triton, (await triton.request()).stream_id, b"a")
    assert (await first).message == b"a"
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    upstream.send(METHOD, b"2", told.set_result)
    asked = await triton.request()
    assert (asked.path, asked.body) == (METHOD.encode(), message(b"2"))
    answer(triton, asked.stream_id, b"b")
    assert (await told).message == b"b"


async def test_calls_at_once_share_a_connection_and_do_not_mix(
    triton: Peer, upstream: H2Upstream
) -> None:
    calls = [asyncio.ensure_future(upstream.unary(METHOD, bytes([n]))) for n in range(20)]
    asked = [await triton.request() for _ in calls]
    for each in reversed(asked):
        answer(triton, each.stream_id, each.body[5:] * 2)
    assert [(await call).message for call in calls] == [bytes([n, n]) for n in range(20)]
    assert len(triton.all) == 1


async def test_a_call_that_was_not_looked_at_is_sent_once_more(
    triton: Peer, upstream: H2Upstream
) -> None:
    call = asyncio.ensure_future(upstream.unary(METHOD, b"x"))
    triton.reset((await triton.request()).stream_id, REFUSED_STREAM)
    answer(triton, (await triton.request()).stream_id, b"y")
    assert (await call).message == b"y"


async def test_a_call_refused_twice_is_unavailable(triton: Peer, upstream: H2Upstream) -> None:
    call = asyncio.ensure_future(upstream.unary(METHOD, b"x"))
    for _ in range(2):
        triton.reset((await triton.request()).stream_id, REFUSED_STREAM)
    with pytest.raises(TritonUnavailable):
        await call


@pytest.mark.parametrize("code", [CANCEL, NO_ERROR])
async def test_a_broken_stream_is_told_as_grpc_tells_it(
    triton: Peer, upstream: H2Upstream, code: int
) -> None:
    """Triton may have executed it: the memory it points to is not used again for these words."""
    call = asyncio.ensure_future(upstream.unary(METHOD, b"x"))
    asked = await triton.request()
    triton.respond(asked.stream_id, OK)
    triton.reset(asked.stream_id, code)
    reply = await call
    assert reply.code != "OK"
    assert "rst_stream" in reply.details.lower()


async def test_after_goaway_running_calls_finish_and_new_ones_use_another_connection(
    triton: Peer, upstream: H2Upstream
) -> None:
    old = asyncio.ensure_future(upstream.unary(METHOD, b"old"))
    asked = await triton.request()
    triton.go_away(asked.stream_id)
    new = asyncio.ensure_future(upstream.unary(METHOD, b"new"))
    answer(triton, asked.stream_id, b"1")
    assert (await old).message == b"1"
    again = await triton.request()
    answer(triton, again.stream_id, b"2")
    assert (await new).message == b"2"
    assert len(triton.all) == 2


async def test_a_broken_connection_ends_its_calls_and_is_dialled_again(
    triton: Peer, upstream: H2Upstream
) -> None:
    calls = [asyncio.ensure_future(upstream.unary(METHOD, b"x")) for _ in range(3)]
    for _ in calls:
        await triton.request()
    triton.lose()
    for call in calls:
        with pytest.raises(TritonUnavailable):
            await call
    after = asyncio.ensure_future(upstream.unary(METHOD, b"y"))
    answer(triton, (await triton.request()).stream_id, b"z")
    assert (await after).message == b"z"


async def test_an_answer_in_many_pieces_is_put_together(triton: Peer, upstream: H2Upstream) -> None:
    call = asyncio.ensure_future(upstream.unary(METHOD, b"x"))
    stream_id = (await triton.request()).stream_id
    triton.respond(stream_id, OK)
    for byte in message(b"abc"):
        triton.data(stream_id, bytes([byte]))
    triton.trailers(stream_id, DONE)
    assert (await call).message == b"abc"


async def test_a_message_over_the_default_windows_goes_through_whole() -> None:
    """64 KiB is HTTP/2's window before anybody enlarges it."""
    large = bytes(range(256)) * 4096 * 8

    async def echo(call: Call, _context: Any) -> bytes:
        return call.messages[0]

    handler = RawGrpc(echo)
    async with serving(handler, receive_bytes_max=-1):
        there = H2Upstream(handler.address)
        await there.start()
        assert (await there.unary(METHOD, large)).message == large
        await there.close()


def test_what_is_no_grpc_answer_is_told_by_its_http_status() -> None:
    """The mapping of the gRPC protocol."""
    for status, code in ((b"503", "UNAVAILABLE"), (b"404", "UNIMPLEMENTED"), (b"302", "UNKNOWN")):
        reply = reply_of(((b":status", status),), [], ())
        assert (reply.code, status.decode() in reply.details) == (code, True)
    assert reply_of((), [], ((b"grpc-status", b"99"),)).code == "UNKNOWN"


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0\2a", b"\0\0\0\0\1ab", b"\1\0\0\0\1a"])
def test_a_body_that_is_not_one_plain_message_is_no_answer(data: bytes) -> None:
    assert reply_of(OK, [data], DONE).code == "INTERNAL"


def test_the_words_of_an_error_are_unescaped() -> None:
    trailers = ((b"grpc-status", b"3"), (b"grpc-message", b"gr%C3%BC%C3%9Fe%25"))
    assert reply_of(OK, [], trailers).details == "grüße%"
    assert reply_of(trailers, [], ()) == GrpcReply("INVALID_ARGUMENT", "grüße%", b"", (), ())


@given(st.binary(max_size=40))
def test_binary_metadata_survives_both_ways(value: bytes) -> None:
    assert decode_header(encode_header(("x-bin", value))) == ("x-bin", value)


def test_metadata_that_is_no_base64_is_passed_on_as_it_is() -> None:
    assert decode_header((b"x-bin", b"!")) == ("x-bin", "!")
    assert encode_header(("x-bin", "text")) == (b"x-bin", b"dGV4dA")
    assert encode_header(("k", b"v")) == (b"k", b"v")
