"""How an answer ended, on both wires: in our words, with Triton's own refusals recognised."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.unit.frontend.wires import fixed, raw_http
from tritonsched.bench.clients import HttpClient, TargetError, _grpc_status
from tritonsched.bench.payload import Inputs, Wording
from tritonsched.bench.plan import LoadClass

CLASSES = (LoadClass("a", 1.0, 30.0, 20.0),)
INPUTS: Inputs = {"X": ("FP32", (1,), b"1234")}
WORDING = Wording(timeout=True, header=True, send_class=True)
EXPIRED = b'{"error":"[request id: <id_unknown>] Request timeout expired"}'


def client_of(address: str) -> HttpClient:
    made = HttpClient(address)
    made.prepare("m", CLASSES, [INPUTS], WORDING)
    return made


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (fixed("200 OK", body=b"{}"), "ok"),
        (fixed("504 x", "X-Tritonsched-Reason: queue-full"), "queue-full"),
        (fixed("503 x", body=EXPIRED), "triton-timeout"),
        (fixed("503 x", body=b'{"error":"Exceeds maximum queue size"}'), "triton-queue-full"),
        (fixed("500 x", body=b'{"error":"something else"}'), "http-500"),
        (fixed("200 OK", "Connection: close", body=b"{}"), "ok"),
    ],
)
async def test_each_http_answer_has_its_word_and_the_next_request_is_unhurt(
    answer: Any, expected: str
) -> None:
    async with raw_http(answer) as target:
        client = client_of(target.address)
        assert [await client.send(0, 0) for _ in range(3)] == [expected] * 3
        await client.close()
    assert len(target.seen) == 3
    head, _, body = target.seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert b"x-request-deadline-ms: 30" in head
    assert body.endswith(b"1234")


@pytest.mark.parametrize("written", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_connection_that_breaks_is_a_failure_not_a_hang(written: bytes) -> None:
    async def breaks(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(written)
        writer.close()

    async with raw_http(breaks) as target:
        client = client_of(target.address)
        assert [await client.send(0, 0) for _ in range(2)] == ["unavailable"] * 2
        await client.close()


async def test_answers_do_not_share_a_connection_while_one_is_out() -> None:
    """One request a connection at a time; an idle one is used again."""
    release = asyncio.Event()

    async def waits(_request: bytes, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw_http(waits) as target:
        client = client_of(target.address)
        first, second = (asyncio.ensure_future(client.send(0, 0)) for _ in range(2))
        release.set()
        assert list(await asyncio.gather(first, second)) == ["ok", "ok"]
        assert await client.send(0, 0) == "ok"
        assert len(target.tasks) == 2
        await client.close()


@pytest.mark.parametrize("body", [b"not json", b'{"max_batch_size": "many"}'])
async def test_a_target_that_is_no_triton_is_told(body: bytes) -> None:
    async with raw_http(fixed("200 OK", body=body)) as target:
        client = HttpClient(target.address)
        with pytest.raises(TargetError, match=r"127\.0\.0\.1:"):
            await client.model("m")


def failed(code: grpc.StatusCode, details: str | None, *trailers: tuple[str, str]) -> str:
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, empty, grpc.aio.Metadata(*trailers), details, "")
    return _grpc_status(error)


def test_each_grpc_status_has_its_word() -> None:
    reason = ("x-tritonsched-reason", "deadline-unreachable")
    expired = grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed(expired, "no time", ("a", "b"), reason) == "deadline-unreachable"
    assert failed(expired, "Deadline Exceeded") == "gave-up"
    assert failed(grpc.StatusCode.UNAVAILABLE, "Request timeout expired") == "triton-timeout"
    assert failed(grpc.StatusCode.UNAVAILABLE, "failed to connect") == "unavailable"
    assert failed(grpc.StatusCode.INVALID_ARGUMENT, None) == "invalid-argument"
