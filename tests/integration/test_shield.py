"""Every request that a rule of the shield knows, on the real Triton: refused, and Triton lives.

Sent past the sidecar each of them ends Triton 2.51, but for `region-offset` and `strict-stream`,
which do so at times.
"""

import gzip
import json
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.differential.models import write_repository
from tests.differential.wire import HttpAsk, ask_http
from tests.integration.conftest import TRITON_ENVIRONMENT
from tests.integration.sidecars import grpc_url, http_url, metric, running_sidecar
from tests.integration.stage import stub_of
from tritonsched.backend.embedded import EmbeddedConfig, EmbeddedTriton
from tritonsched.backend.shared_memory import SHM
from tritonsched.sidecar import Sidecar

KEY = "shield-test-region"
SIZE = 4096
CHUNKS = 600_000  # Triton keeps 16 bytes of each on a stack of 8 MiB
LONG = "file:" + "A" * 256


@pytest.fixture(scope="module")
async def pair(
    tmp_path_factory: pytest.TempPathFactory, build_dir: Path
) -> AsyncIterator[tuple[EmbeddedTriton, Sidecar]]:
    """One for all: that it is still there is what each test asks."""
    directory = tmp_path_factory.mktemp("shield")
    write_repository(directory / "models")
    config = EmbeddedConfig(
        repository=directory / "models",
        environment=TRITON_ENVIRONMENT,
        run_dir=directory / "run",
        build_dir=build_dir,
        models=("num", "text"),
        control_mode="explicit",
    )
    async with EmbeddedTriton(config) as triton, running_sidecar(triton) as sidecar:
        yield triton, sidecar


@pytest.fixture
def region() -> Iterator[Path]:
    path = SHM / KEY
    path.write_bytes(bytes(2 * SIZE))
    yield path
    path.unlink()


def post(path: str, body: Any, *headers: str) -> HttpAsk:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(raw)}", *headers, "\r\n")
    return HttpAsk(("\r\n".join(head).encode() + raw,))


async def said(address: str, ask: HttpAsk) -> tuple[str, str, str]:
    """Status, reason and text."""
    (reply,) = (await ask_http(address, ask)).replies
    text = json.loads(reply.body).get("error", "") if reply.body else ""
    return reply.start.split(" ")[1], reply.header("x-tritonsched-reason"), text


async def told(call: Any) -> tuple[str, str, str]:
    """The same of a gRPC call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        trailers: Any = error.trailing_metadata()
        reason = dict(trailers).get("x-tritonsched-reason", "")
        return error.code().name, str(reason), error.details() or ""
    return "OK", "", ""


def infer(model: str, datatype: str, raw: bytes, *shape: int, **parameters: Any) -> Any:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="IN", datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    output = request.outputs.add(name="OUT")
    for name, value in parameters.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(output.parameters[name], kind, value)
    return request


def json_infer(shape: list[int], data: list[Any], datatype: str = "FP32", **output: Any) -> Any:
    given = {"name": "IN", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [given], "outputs": [{"name": "OUT", "parameters": output}]}


NUM, TEXT = "/v2/models/num/infer", "/v2/models/text/infer"
DEEP = b"[" * 200_000 + b"1" + b"]" * 200_000
WRAPS: dict[str, Any] = {"shared_memory_region": "none", "shared_memory_offset": 4088}
OF_TEXTS = json_infer([1, 1], ["a"], "BYTES", classification=1)
LOAD = "/v2/repository/models/spare/load"
HTTP = {
    "class-of-text": post(TEXT, OF_TEXTS),
    "class-of-text in gzip": post(
        TEXT, gzip.compress(json.dumps(OF_TEXTS).encode()), "Content-Encoding: gzip"
    ),
    "class-of-nothing": post(NUM, json_infer([1, 0], [], classification=1)),
    "json-shape": post(NUM, json_infer([1, 1 << 40], [1])),
    "json-shape that wraps": post(NUM, json_infer([1, 1 << 62], [1])),
    "json-depth": post(
        NUM, b'{"inputs":[{"name":"IN","datatype":"FP32","shape":[1,1],"data":' + DEEP + b"}]}"
    ),
    "json-depth of generate": post("/v2/models/num/generate", b'{"IN":' + DEEP + b"}"),
    "json-depth of index": post("/v2/repository/index", b'{"ready":' + DEEP * 5 + b"}"),
    "place-wraps": post(
        NUM, json_infer([1, 1], [1], shared_memory_byte_size=(1 << 64) - 4080, **WRAPS)
    ),
    "file-name": post(LOAD, {"parameters": {"config": "{}", LONG: "AA=="}}),
}


def loading() -> Any:
    request = pb.RepositoryModelLoadRequest(model_name="spare")
    request.parameters["config"].string_param = "{}"
    request.parameters[LONG].bytes_param = b"x"
    return request


GRPC: dict[str, tuple[str, Any]] = {
    "class-of-text": (
        "ModelInfer",
        infer("text", "BYTES", struct.pack("<I", 1) + b"a", 1, 1, classification=1),
    ),
    "place-wraps": (
        "ModelInfer",
        infer("num", "FP32", bytes(4), 1, 1, shared_memory_byte_size=-4080, **WRAPS),
    ),
    "file-name": ("RepositoryModelLoad", loading()),
}


async def lives(triton: EmbeddedTriton) -> bool:
    async with stub_of(triton.grpc_address) as stub:
        await stub.ModelInfer(infer("num", "FP32", bytes(4), 1, 1))
    return triton.is_running


@pytest.mark.parametrize("name", HTTP)
async def test_over_http_it_is_refused_and_triton_lives(
    pair: tuple[EmbeddedTriton, Sidecar], name: str
) -> None:
    triton, sidecar = pair
    rule = name.partition(" ")[0]
    before = await metric(sidecar, "tritonsched_shielded_total", rule=rule)
    status, reason, text = await said(http_url(sidecar), HTTP[name])
    assert (status, reason) == ("500" if rule == "file-name" else "400", "shielded")
    assert f"shield rule '{rule}'" in text
    assert await metric(sidecar, "tritonsched_shielded_total", rule=rule) == before + 1
    assert await lives(triton)


@pytest.mark.parametrize("name", GRPC)
async def test_over_grpc_it_is_refused_and_triton_lives(
    pair: tuple[EmbeddedTriton, Sidecar], name: str
) -> None:
    triton, sidecar = pair
    method, message = GRPC[name]
    async with stub_of(grpc_url(sidecar)) as stub:
        code, reason, text = await told(getattr(stub, method)(message))
    assert (code, reason) == ("INTERNAL" if name == "file-name" else "INVALID_ARGUMENT", "shielded")
    assert f"shield rule '{name}'" in text
    assert await lives(triton)


@pytest.mark.parametrize(("strict", "end"), [(True, "INVALID_ARGUMENT"), (False, "OK")])
async def test_messages_of_strict_streams_are_refused_and_others_are_not(
    pair: tuple[EmbeddedTriton, Sidecar], strict: bool, end: str
) -> None:
    triton, sidecar = pair
    metadata = (("triton_grpc_error", "true"),) if strict else ()
    fails = infer("num", "FP32", struct.pack("<f", -3), 1, 1)
    async with stub_of(grpc_url(sidecar)) as stub:
        call = stub.ModelStreamInfer(iter([fails]), metadata=metadata)

        async def read() -> None:
            async for answer in call:
                assert "told to fail" in answer.error_message

        code, _, text = await told(read())
    assert code == end
    assert ("strict-stream" in text) == strict
    assert await lives(triton)


async def test_a_region_is_registered_at_its_beginning_only(
    pair: tuple[EmbeddedTriton, Sidecar], region: Path
) -> None:
    _, sidecar = pair
    path = "/v2/systemsharedmemory/region/offset/register"
    ask = post(path, {"key": f"/{KEY}", "offset": SIZE, "byte_size": SIZE})
    assert (await said(http_url(sidecar), ask))[:2] == ("400", "shielded")
    async with stub_of(grpc_url(sidecar)) as stub:
        asked = pb.SystemSharedMemoryRegisterRequest(
            name="offset", key=f"/{KEY}", offset=SIZE, byte_size=SIZE
        )
        assert (await told(stub.SystemSharedMemoryRegister(asked)))[:2] == (
            "INVALID_ARGUMENT",
            "shielded",
        )
    assert "offset" not in await sidecar.backend.region_status()


async def test_a_region_that_shrank_is_refused_whatever_the_form_of_the_request(
    pair: tuple[EmbeddedTriton, Sidecar], region: Path
) -> None:
    triton, sidecar = pair
    path = "/v2/systemsharedmemory/region/shrinks"
    made = post(f"{path}/register", {"key": f"/{KEY}", "offset": 0, "byte_size": SIZE})
    assert (await said(http_url(sidecar), made))[0] == "200"
    os.truncate(region, 0)
    place = {"shared_memory_region": "shrinks", "shared_memory_byte_size": 4}
    given = {"name": "IN", "datatype": "FP32", "shape": [1, 1], "parameters": place}
    for outputs in ([], [{"name": "OUT", "parameters": {"binary_data": True}}]):
        ask = post(NUM, {"inputs": [given], "outputs": outputs})
        status, reason, text = await said(http_url(sidecar), ask)
        assert (status, reason) == ("400", "shielded")
        assert "shrunk-region" in text
    assert await lives(triton)
    assert (await said(http_url(sidecar), post(f"{path}/unregister", b"")))[0] == "200"


async def test_a_body_in_very_many_chunks_reaches_triton_in_one_piece(
    pair: tuple[EmbeddedTriton, Sidecar],
) -> None:
    triton, sidecar = pair
    body = json.dumps(json_infer([1, 1], [1])).encode().ljust(CHUNKS)
    head = b"POST /v2/models/num/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join([b"1\r\n%c\r\n" % byte for byte in body])
    status, _, _ = await said(http_url(sidecar), HttpAsk((head + chunks + b"0\r\n\r\n",)))
    assert status == "200"
    assert await lives(triton)


@pytest.mark.parametrize("binary", [True, False])
async def test_the_pool_is_answered_as_a_region_that_nobody_registered(
    pair: tuple[EmbeddedTriton, Sidecar], binary: bool
) -> None:
    """On both protocols, as an input and as an output, in words that Triton has for others."""
    triton, sidecar = pair
    (pool,) = await sidecar.backend.region_status()
    other = "unregistered-" + "0" * (len(pool) - len("unregistered-"))

    def asks(name: str) -> list[HttpAsk]:
        place = {"shared_memory_region": name, "shared_memory_byte_size": 4}
        given = {"name": "IN", "datatype": "FP32", "shape": [1, 1]}
        wanted = {"name": "OUT", "parameters": {"binary_data": True} if binary else {}}
        read = {"inputs": [{**given, "parameters": place}], "outputs": [wanted]}
        written = {**wanted, "parameters": place}
        return [
            post(NUM, read),
            post(NUM, {"inputs": [{**given, "data": [1]}], "outputs": [written]}),
        ]

    for mine, theirs in zip(asks(pool), asks(other), strict=True):
        status, _, text = await said(triton.http_address, theirs)
        assert "Unable to find" in text
        expected = (status, "guarded-name", text.replace(other, pool))
        assert await said(http_url(sidecar), mine) == expected
    place = {"shared_memory_byte_size": 4}
    message = infer("num", "FP32", bytes(4), 1, 1, shared_memory_region=pool, **place)
    unknown = infer("num", "FP32", bytes(4), 1, 1, shared_memory_region=other, **place)
    async with stub_of(grpc_url(sidecar)) as at, stub_of(triton.grpc_address) as straight:
        code, _, text = await told(straight.ModelInfer(unknown))
        expected = (code, "guarded-name", text.replace(other, pool))
        assert await told(at.ModelInfer(message)) == expected


async def test_the_release_is_known_and_every_rule_of_it_holds(
    pair: tuple[EmbeddedTriton, Sidecar],
) -> None:
    _, sidecar = pair
    assert sidecar.backend.version == "2.51.0"
    assert sidecar.shield.holds("class-of-text")
    sidecar.shield.connected("2.60.0")
    assert not sidecar.shield.holds("class-of-text")
    sidecar.shield.connected(sidecar.backend.version)
