"""Bad input: a clear error or a clean wait; others are unhurt; the process lives.

Where Triton knows the fault, the answer is Triton's own, so these tests compare with Triton's.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.integration.raw_triton import infer_request
from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.sidecar import Sidecar

QUEUE_CALLS = 40  # of 24 ms each: the last ones wait for most of a second
HEAD = "Inference-Header-Content-Length"
ROW = np.arange(4, dtype=np.float32)[np.newaxis]


def body(
    *,
    shape: Any = (1, 4),
    datatype: str = "FP32",
    size: int | None = None,
    tail: bytes | None = None,
) -> tuple[dict[str, str], bytes]:
    """A binary request to echo; each part can be wrong by itself."""
    tail = ROW.tobytes() if tail is None else tail
    parameters = {"binary_data_size": len(tail) if size is None else size}
    tensor = {"name": "INPUT", "shape": shape, "datatype": datatype, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return {HEAD: str(len(head))}, head + tail


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def post(
    session: aiohttp.ClientSession, url: str, model: str, headers: dict[str, str], data: bytes
) -> tuple[int, dict[str, str], bytes]:
    async with session.post(
        f"http://{url}/v2/models/{model}/infer", headers=headers, data=data
    ) as reply:
        return reply.status, dict(reply.headers), await reply.read()


async def assert_serves(session: aiohttp.ClientSession, url: str) -> None:
    """The next good request works."""
    headers, data = body()
    status, _, answer = await post(session, url, "echo", headers, data)
    assert status == 200
    assert answer.endswith(ROW.tobytes())


HUNDRED = json.dumps(
    {
        "inputs": [
            {"name": f"I{n}", "shape": [1, 1], "datatype": "FP32", "data": [0.0]}
            for n in range(100)
        ]
    }
).encode()
TRITON_KNOWS: dict[str, tuple[str, dict[str, str], bytes]] = {
    "unknown model": ("nobody", *body()),
    "wrong shape": ("mlp", *body()),
    "wrong rank": ("echo", *body(shape=(1, 2, 2))),
    "negative shape": ("echo", *body(shape=(-1, 4))),
    "wrong datatype": ("echo", *body(datatype="INT32")),
    "no such datatype": ("echo", *body(datatype="FLOAT")),
    "wrong size": ("echo", *body(size=8)),
    "truncated binary": ("echo", *body(tail=ROW.tobytes()[:7], size=16)),
    "too many rows": ("echo", *body(shape=(65, 4), tail=b"\0" * 1040)),
    "no rows": ("echo", *body(shape=(0, 4), tail=b"")),
    "a hundred inputs": ("echo", {}, HUNDRED),
    "no JSON": ("echo", {}, b"{"),
    "head longer than the body": ("echo", {HEAD: "99999"}, body()[1]),
    "negative head length": ("echo", {HEAD: "-1"}, body()[1]),
    "garbage": ("echo", {}, bytes(range(256))),
}


@pytest.mark.parametrize("name", TRITON_KNOWS)
async def test_a_fault_that_triton_knows_is_told_in_its_own_words(
    sidecar: Sidecar, triton: EmbeddedTriton, session: aiohttp.ClientSession, name: str
) -> None:
    model, headers, data = TRITON_KNOWS[name]
    mine = await post(session, http_url(sidecar), model, headers, data)
    theirs = await post(session, triton.http_address, model, headers, data)
    assert (mine[0], mine[2]) == (theirs[0], theirs[2])
    assert mine[0] >= 400
    await assert_serves(session, http_url(sidecar))


DEADLINES = {
    "not a number": ("nan", 400, "bad-deadline"),
    "words": ("soon", 400, "bad-deadline"),
    "negative": ("-5", 400, "bad-deadline"),
    "zero": ("0", 504, "deadline-unreachable"),
    "hopelessly short": ("0.001", 504, "deadline-unreachable"),
}


@pytest.mark.parametrize("name", DEADLINES)
async def test_a_senseless_or_impossible_deadline_is_refused_with_its_reason(
    sidecar: Sidecar, session: aiohttp.ClientSession, name: str
) -> None:
    text, status, reason = DEADLINES[name]
    headers, data = body()
    made = await post(
        session, http_url(sidecar), "echo", headers | {"x-request-deadline-ms": text}, data
    )
    assert (made[0], made[1]["x-tritonsched-reason"]) == (status, reason)
    assert json.loads(made[2])["error"]
    await assert_serves(session, http_url(sidecar))


@pytest.mark.parametrize("text", ["1e9", "1e300", "inf"])
async def test_an_absurdly_long_deadline_is_as_good_as_none(
    sidecar: Sidecar, session: aiohttp.ClientSession, text: str
) -> None:
    headers, data = body()
    made = await post(
        session, http_url(sidecar), "echo", headers | {"x-request-deadline-ms": text}, data
    )
    assert made[0] == 200


async def test_an_unknown_class_is_refused_and_the_known_ones_named(
    sidecar: Sidecar, session: aiohttp.ClientSession
) -> None:
    headers, data = body()
    made = await post(
        session, http_url(sidecar), "echo", headers | {"x-tritonsched-class": "gold"}, data
    )
    assert (made[0], made[1]["x-tritonsched-reason"]) == (400, "unknown-class")
    assert b"use one of default" in made[2]


async def test_a_body_over_the_limit_is_refused_before_it_is_kept(
    triton: EmbeddedTriton, session: aiohttp.ClientSession
) -> None:
    """With and without Content-Length; gRPC refuses in its own way."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"\0" * 65_536

    async with running_sidecar(triton, policy="limits: {request_mib_max: 1}\n") as small:
        url = http_url(small)
        for data in (io.BytesIO(b"\0" * (2 << 20)), endless()):
            async with session.post(f"http://{url}/v2/models/echo/infer", data=data) as reply:
                assert reply.status == 413
                assert reply.headers["x-tritonsched-reason"] == "payload-too-large"
        await assert_serves(session, url)
        request = infer_request("echo", {"INPUT": np.zeros((1, 1 << 19), np.float32)})
        status = await grpc_error(grpc_url(small), request.SerializeToString())
        assert status[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def grpc_error(
    url: str, message: bytes, *, method: str = "ModelInfer", timeout: float | None = None
) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    async with grpc.aio.insecure_channel(url) as channel:
        call = channel.unary_unary(SERVICE + method, None, None)(message, timeout=timeout)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = caught.value
        pairs: Any = error.trailing_metadata()  # pairs, whatever the stubs say
        trailers = {str(key): value for key, value in pairs}
        return error.code(), error.details() or "", trailers


GRPC_FAULTS = {
    "unknown model": infer_request("nobody", {"INPUT": ROW}),
    "wrong shape": infer_request("mlp", {"INPUT": ROW}),
    "wrong datatype": infer_request("echo", {"INPUT": ROW.astype(np.float64)}),
    "too many rows": infer_request("echo", {"INPUT": np.zeros((65, 4), np.float32)}),
    "a hundred inputs": infer_request("echo", {f"I{n}": ROW for n in range(100)}),
    "empty": pb.ModelInferRequest(),
}


@pytest.mark.parametrize("name", GRPC_FAULTS)
async def test_a_grpc_fault_that_triton_knows_is_told_in_its_own_words(
    sidecar: Sidecar, triton: EmbeddedTriton, name: str
) -> None:
    message = GRPC_FAULTS[name].SerializeToString()
    mine = await grpc_error(grpc_url(sidecar), message)
    theirs = await grpc_error(triton.grpc_address, message)
    assert mine[:2] == theirs[:2]


@pytest.mark.parametrize("message", [b"\xff" * 10, b"\x0a\xff\xff\xff\xff\x0f"])
async def test_an_undecodable_message_is_tritons_to_refuse(
    sidecar: Sidecar, triton: EmbeddedTriton, message: bytes
) -> None:
    mine = await grpc_error(grpc_url(sidecar), message)
    theirs = await grpc_error(triton.grpc_address, message)
    assert mine[:2] == theirs[:2]


async def test_an_impossible_grpc_deadline_parameter_has_status_reason_and_text(
    sidecar: Sidecar,
) -> None:
    request = infer_request("echo", {"INPUT": ROW})
    request.parameters["timeout"].int64_param = 1
    code, text, trailers = await grpc_error(grpc_url(sidecar), request.SerializeToString())
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert trailers["x-tritonsched-reason"] == "deadline-unreachable"
    assert "echo" in text


@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
@pytest.mark.parametrize(
    "garbage", [b"\x00\xff\x10garbage\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"]
)
async def test_garbage_on_a_port_hurts_nobody(
    sidecar: Sidecar, session: aiohttp.ClientSession, port: str, garbage: bytes
) -> None:
    ports = {
        "http": sidecar.http_server.port,
        "grpc": sidecar.grpc_server.port,
        "metrics": sidecar.admin_server.port,
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[port])
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()
    await assert_serves(session, http_url(sidecar))


async def test_a_client_that_leaves_mid_queue_is_dropped_and_never_executed(
    sidecar: Sidecar, session: aiohttp.ClientSession
) -> None:
    """Behind a running batch of the same emulated GPU; HTTP disconnect and gRPC cancel alike."""
    image = np.zeros((32, 3, 32, 32), np.float32)
    message = infer_request("emulated_a", {"INPUT": image}).SerializeToString()
    before = await metric(sidecar, "tritonsched_requests_total", outcome="cancelled")
    submitted = sidecar.ledger.submitted.total()
    async with grpc.aio.insecure_channel(grpc_url(sidecar)) as channel:
        await channel.channel_ready()  # before it is, calls leave in any order
        infer = channel.unary_unary(SERVICE + "ModelInfer", None, None)
        running = [asyncio.ensure_future(_finished(infer(message))) for _ in range(QUEUE_CALLS)]
        leaving = [infer(message) for _ in range(4)]
        async with asyncio.timeout(20):
            while sidecar.ledger.submitted.total() < submitted + QUEUE_CALLS + len(leaving):
                await metric(sidecar, "tritonsched_ready")
        for call in leaving:
            call.cancel()
        await asyncio.gather(*running)
    after = await metric(sidecar, "tritonsched_requests_total", outcome="cancelled")
    assert after - before == len(leaving)
    await assert_serves(session, http_url(sidecar))


async def _finished(call: Any) -> None:
    await call


async def test_a_client_that_leaves_mid_upload_hurts_nobody(
    sidecar: Sidecar, session: aiohttp.ClientSession
) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", sidecar.http_server.port)
    writer.write(
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        + b"\0" * 99
    )
    await writer.drain()
    writer.close()
    await assert_serves(session, http_url(sidecar))
    assert sidecar.proxy.tensor_bytes == 0
