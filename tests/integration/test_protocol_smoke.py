"""Both front ends against Triton itself: what a client sees is the same, byte for byte.

A small part of the protocol by its oddities; every call goes to the sidecar and to its Triton.
"""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.grpc import service_pb2 as pb

from tests.integration.raw_triton import infer_request
from tests.integration.sidecars import grpc_url, http_url
from tests.unit.frontend.http_client import Reply, connected
from tritonsched.backend.embedded import EmbeddedTriton
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.sidecar import Sidecar

HEAD = "Inference-Header-Content-Length"
ROW = np.arange(4, dtype=np.float32)[np.newaxis]
INFER = "/v2/models/echo/infer"


def head(*, outputs: Any = None, data: bool = False, **members: Any) -> bytes:
    tensor: dict[str, Any] = {"name": "INPUT", "shape": [1, 4], "datatype": "FP32"}
    if data:
        tensor["data"] = ROW[0].tolist()
    else:
        tensor["parameters"] = {"binary_data_size": ROW.nbytes}
    made = {"inputs": [tensor], **members}
    if outputs is not None:
        made["outputs"] = [{"name": "OUTPUT", "parameters": outputs}]
    return json.dumps(made).encode()


ALL_BINARY = {"binary_data_output": True}
BINARY = head(parameters=ALL_BINARY)
JSON = head(data=True)

Ask = tuple[str, str, tuple[str, ...], bytes]


def binary(text: bytes, *headers: str, tail: bytes = ROW.tobytes()) -> Ask:
    return ("POST", INFER, (f"{HEAD}: {len(text)}", *headers), text + tail)


def get(path: str) -> Ask:
    return ("GET", path, (), b"")


HTTP: dict[str, Ask] = {
    "server": get("/v2"),
    "live": get("/v2/health/live"),
    "ready": get("/v2/health/ready"),
    "model": get("/v2/models/echo"),
    "model of a version": get("/v2/models/echo/versions/1"),
    "model ready": get("/v2/models/echo/ready"),
    "no model ready": get("/v2/models/nobody/ready"),
    "config": get("/v2/models/mlp/config"),
    "index": ("POST", "/v2/repository/index", (), b""),
    "index of the ready": ("POST", "/v2/repository/index", (), b'{"ready":true}'),
    "regions": get("/v2/cudasharedmemory/status"),
    "logging": get("/v2/logging"),
    "trace": get("/v2/trace/setting"),
    "no path": get("/nothing"),
    "a slash too many": get("/v2/"),
    "two slashes": get("//v2"),
    "a query": get("/v2?a=b%20c"),
    "an escaped name": ("POST", "/v2/models/%65cho/infer", (), JSON),
    "a fragment": ("POST", f"{INFER}#x", (), JSON),
    "an absolute URI": get("http://elsewhere/v2"),
    "another method": ("PUT", "/v2", (), b""),
    "get of infer": get(INFER),
    "no version": ("POST", "/v2/models/echo/versions/9/infer", (), JSON),
    "a version of words": ("POST", "/v2/models/echo/versions/x/infer", (), JSON),
    "load without control": ("POST", "/v2/repository/models/echo/load", (), b"{}"),
    "generate of another kind": ("POST", "/v2/models/echo/generate", (), b'{"INPUT":[1.0]}'),
    "generate of nothing": ("POST", "/v2/models/echo/generate_stream", (), b"{"),
    "merged": binary(BINARY),
    "merged of a version": ("POST", "/v2/models/echo/versions/1/infer", *binary(BINARY)[2:]),
    "merged with an id": binary(head(id='a/é\U0001f600"\\', parameters=ALL_BINARY)),
    "merged by output": binary(head(outputs={"binary_data": True})),
    "merged with parameters": binary(head(parameters=ALL_BINARY | {"timeout": 10_000_000, "a": 1})),
    "answer in JSON": binary(head()),
    "asked in JSON": ("POST", INFER, (), JSON),
    "asked in JSON for binary": ("POST", INFER, (), head(data=True, parameters=ALL_BINARY)),
    "raw": ("POST", INFER, (f"{HEAD}: 0",), ROW.tobytes()),
    "asked in gzip": (
        "POST",
        INFER,
        (f"{HEAD}: {len(BINARY)}", "Content-Encoding: gzip"),
        gzip.compress(BINARY + ROW.tobytes()),
    ),
    "asked in nothing known": ("POST", INFER, ("Content-Encoding: br",), JSON),
    "a member twice": binary(BINARY[:-1] + b',"id":"a","id":"b"}'),
    "an infinite parameter": binary(BINARY.replace(b"true", b'true,"a":1e400')),
    "half a surrogate pair": binary(BINARY[:-1] + rb',"id":"\ud800"}'),
    "a list": binary(b"[5]"),
    "an input no object": binary(b'{"inputs":[5],"parameters":{"binary_data_output":true}}'),
    "UTF-16": binary(BINARY.decode().encode("utf-16")),
    "a classification": binary(head(outputs={"classification": 2})),
    "a head too long": ("POST", INFER, (f"{HEAD}: {'9' * 30}",), BINARY),
    "an empty body": ("POST", INFER, (), b""),
}


async def ask(url: str, call: Ask) -> Reply:
    method, path, headers, body = call
    async with connected(int(url.rpartition(":")[2])) as client:
        client.ask(method, path, "Host: x", *headers, body=body)
        return await client.reply()


@pytest.mark.parametrize("name", HTTP)
async def test_an_http_answer_is_tritons_byte_for_byte(
    sidecar: Sidecar, triton: EmbeddedTriton, name: str
) -> None:
    """Status, its words, headers and body; none added, none missing."""
    theirs = await ask(triton.http_address, HTTP[name])
    mine = await ask(http_url(sidecar), HTTP[name])
    assert mine == theirs


@pytest.mark.parametrize("coding", ["gzip", "deflate", "deflate;q=0.1, gzip;q=0.2", "br"])
@pytest.mark.parametrize("name", ["merged", "asked in JSON", "model"])
async def test_a_compressed_answer_is_compressed_like_tritons(
    sidecar: Sidecar, triton: EmbeddedTriton, name: str, coding: str
) -> None:
    """The same headers but the length, and the same answer within."""
    method, path, headers, body = HTTP[name]
    call = (method, path, (*headers, f"Accept-Encoding: {coding}"), body)
    theirs = await ask(triton.http_address, call)
    mine = await ask(http_url(sidecar), call)
    assert decoded(mine) == decoded(theirs)


def decoded(reply: Reply) -> tuple[int, dict[str, str], bytes]:
    undo: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
    }
    headers = {name: value for name, value in reply.headers.items() if name != "content-length"}
    return reply.status, headers, undo.get(headers.get("content-encoding", ""), bytes)(reply.body)


# -- gRPC -------------------------------------------------------------------------------------


def message(**fields: Any) -> Any:
    made = infer_request("echo", {"INPUT": ROW})
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def typed() -> Any:
    made = message()
    made.ClearField("raw_input_contents")
    made.inputs[0].contents.fp32_contents.extend(ROW[0].tolist())
    return made


GRPC: dict[str, tuple[str, Any]] = {
    "live": ("ServerLive", pb.ServerLiveRequest()),
    "ready": ("ServerReady", pb.ServerReadyRequest()),
    "server": ("ServerMetadata", pb.ServerMetadataRequest()),
    "model": ("ModelMetadata", pb.ModelMetadataRequest(name="echo")),
    "no model": ("ModelMetadata", pb.ModelMetadataRequest(name="nobody")),
    "model ready": ("ModelReady", pb.ModelReadyRequest(name="nobody")),
    "config": ("ModelConfig", pb.ModelConfigRequest(name="mlp")),
    "index": ("RepositoryIndex", pb.RepositoryIndexRequest()),
    "load without control": ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="e")),
    "logging": ("LogSettings", pb.LogSettingsRequest()),
    "trace": ("TraceSetting", pb.TraceSettingRequest()),
    "cuda regions": ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
    "no method": ("Nothing", pb.ServerLiveRequest()),
    "merged": ("ModelInfer", message()),
    "merged with an id": ("ModelInfer", message(id="é\U0001f600")),
    "merged of a version": ("ModelInfer", message(model_version="1")),
    "no version": ("ModelInfer", message(model_version="9")),
    "a version of words": ("ModelInfer", message(model_version="x")),
    "a version of many digits": ("ModelInfer", message(model_version="01")),
    "typed contents": ("ModelInfer", typed()),
}


async def call(url: str, method: str, data: bytes) -> tuple[Any, ...]:
    """Code, details, message; UNIMPLEMENTED without details, which each server words by itself."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(url, options=options) as channel:
        started: Any = channel.unary_unary(SERVICE + method, None, None)(data)
        try:
            answer = await started
        except grpc.aio.AioRpcError as error:
            unknown = error.code() is grpc.StatusCode.UNIMPLEMENTED
            return error.code(), "" if unknown else error.details(), b""
        return grpc.StatusCode.OK, "", answer


ANSWERS = {
    "ModelInfer": pb.ModelInferResponse,
    "LogSettings": pb.LogSettingsResponse,
    "TraceSetting": pb.TraceSettingResponse,
}
"""Those with a map: its members have no order, so they are compared by what they mean."""


@pytest.mark.parametrize("name", GRPC)
async def test_a_grpc_answer_is_tritons(
    sidecar: Sidecar, triton: EmbeddedTriton, name: str
) -> None:
    """Code, text and message."""
    method, asked = GRPC[name]
    read: Callable[[bytes], Any] = ANSWERS[method].FromString if method in ANSWERS else bytes
    *theirs, their_message = await call(triton.grpc_address, method, asked.SerializeToString())
    *mine, my_message = await call(grpc_url(sidecar), method, asked.SerializeToString())
    assert (mine, read(my_message)) == (theirs, read(their_message))


async def test_a_grpc_stream_answers_like_tritons(sidecar: Sidecar, triton: EmbeddedTriton) -> None:
    """Answers in order, an error inside the stream, its end after the half-close."""
    asked = [message(id="1"), infer_request("nobody", {"INPUT": ROW}), message(id="3")]

    async def requests() -> AsyncIterator[bytes]:
        for made in asked:
            yield made.SerializeToString()

    answers = []
    for url in (grpc_url(sidecar), triton.grpc_address):
        async with grpc.aio.insecure_channel(url) as channel:
            start: Any = channel.stream_stream(f"{SERVICE}ModelStreamInfer", None, None)
            stream = start(requests())
            found = [pb.ModelStreamInferResponse.FromString(made) async for made in stream]
            answers.append((await stream.code(), found))
    assert answers[0] == answers[1]
    assert [made.infer_response.id for made in answers[0][1]] == ["1", "", "3"]
    assert "nobody" in answers[0][1][1].error_message


# -- stock clients ----------------------------------------------------------------------------

CONTROL = {
    "metadata": ("get_server_metadata", ()),
    "model": ("get_model_metadata", ("echo",)),
    "config": ("get_model_config", ("classify_lite0",)),
    "index": ("get_model_repository_index", ()),
    "live": ("is_server_live", ()),
    "ready": ("is_server_ready", ()),
    "model ready": ("is_model_ready", ("echo",)),
    "statistics": ("get_inference_statistics", ("emulated_b",)),
    "log": ("get_log_settings", ()),
    "regions": ("get_cuda_shared_memory_status", ()),
}


@pytest.mark.parametrize("name", CONTROL)
async def test_stock_clients_hear_of_the_sidecar_what_they_hear_of_triton(
    sidecar: Sidecar, triton: EmbeddedTriton, name: str
) -> None:
    """tritonclient over HTTP and gRPC, sync and aio."""
    method, arguments = CONTROL[name]
    for mine, theirs, sync, aio in (
        (http_url(sidecar), triton.http_address, sync_http, aio_http),
        (grpc_url(sidecar), triton.grpc_address, sync_grpc, aio_grpc),
    ):
        for url in (mine, theirs):
            assert await asked_of(sync, url, method, arguments) == await asked_of(
                aio, theirs, method, arguments
            ), (url, name)
        assert await asked_of(aio, mine, method, arguments) is not None


async def asked_of(module: Any, url: str, method: str, arguments: tuple[str, ...]) -> Any:
    client = module.InferenceServerClient(url)
    if module in (aio_http, aio_grpc):
        async with client:
            return await getattr(client, method)(*arguments)
    try:
        return await asyncio.to_thread(getattr(client, method), *arguments)
    finally:
        await asyncio.to_thread(client.close)
