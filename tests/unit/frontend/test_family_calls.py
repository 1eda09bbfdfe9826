"""Control calls about a model with variants: what clients see of it, on both protocols."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import VariantsOnly
from tritonsched.frontend.family_calls import family_grpc, family_http
from tritonsched.proxy.families import Families
from tritonsched.tensors import Buffer, GrpcReply, HttpReply

FAMILIES = Families({"c": ("fast", "good")})
GONE = HttpReply(404, "Not Found", (), b'{"error":"unknown model"}')


def http(method: str, path: str, known: Mapping[str, Any]) -> tuple[HttpReply | None, list[str]]:
    """The answer, and what Triton was asked for."""
    asked: list[str] = []

    async def ask(method: str, raw_path: str, body: Buffer) -> HttpReply:
        asked.append(raw_path)
        told = known.get(raw_path)
        if told is None:
            return GONE
        headers = (("Content-Type", "application/json"), ("Content-Length", "7"))
        return HttpReply(200, "OK", headers, json.dumps(told).encode())

    return asyncio.run(family_http(FAMILIES, ask, method, path, b"")), asked


def body(reply: HttpReply | None) -> Any:
    assert reply is not None
    assert "content-length" not in {name.lower() for name, _ in reply.headers}
    return json.loads(bytes(reply.body))


METADATA = {"/v2/models/good": {"name": "good", "versions": ["3"], "platform": "x"}}


@pytest.mark.parametrize("path", ["/v2/models/c", "/v2/models/c/versions/1", "/v2/models/c?a=1"])
def test_metadata_is_the_first_variants_that_is_there_under_the_familys_name(path: str) -> None:
    reply, asked = http("GET", path, METADATA)
    assert body(reply) == {"name": "c", "versions": ["1"], "platform": "x"}
    assert asked == ["/v2/models/fast", "/v2/models/good"]


def test_configuration_bears_its_name() -> None:
    reply, _ = http("GET", "/v2/models/c/config", {"/v2/models/good/config": {"name": "good"}})
    assert body(reply) == {"name": "c"}


def test_ready_is_one_of_them() -> None:
    ready, _ = http("GET", "/v2/models/c/ready", {"/v2/models/good/ready": {}})
    assert ready is not None
    assert ready.status == 200
    assert http("GET", "/v2/models/c/ready", {})[0] == GONE


def test_statistics_are_those_of_all() -> None:
    known = {f"/v2/models/{name}/stats": {"model_stats": [name]} for name in ("good", "fast")}
    assert body(http("GET", "/v2/models/c/stats", known)[0]) == {"model_stats": ["fast", "good"]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/good"),
        ("GET", "/v2/models/c/versions/2"),
        ("GET", "/v2/models/c/trace/setting"),
        ("POST", "/v2/models/c"),
        ("POST", "/v2/repository/models/good/load"),
    ],
)
def test_the_rest_is_tritons(method: str, path: str) -> None:
    assert http(method, path, METADATA) == (None, [])


def test_the_index_lists_it_while_a_variant_is_ready() -> None:
    path = "/v2/repository/index"
    ready = {"name": "good", "version": "3", "state": "READY"}
    reply, _ = http("POST", path, {path: [{"name": "fast"}, ready]})
    assert body(reply)[2:] == [{"name": "c", "version": "1", "state": "READY"}]
    assert len(body(http("POST", path, {path: [{"name": "good", "state": "LOADING"}]})[0])) == 1
    assert len(body(http("POST", path, {path: [ready, {"name": "c"}]})[0])) == 2  # Triton's own
    assert http("POST", path, {})[0] == GONE


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_loading_is_a_matter_of_the_variants(verb: str) -> None:
    with pytest.raises(VariantsOnly, match="load and unload fast, good"):
        http("POST", f"/v2/repository/models/c/{verb}", {})


def test_a_variant_of_the_familys_own_name_is_loaded_like_any_model() -> None:
    async def ask(method: str, raw_path: str, body: Buffer) -> HttpReply:
        raise AssertionError

    path = "/v2/repository/models/c/load"
    own = Families({"c": ("c", "fast")})
    assert asyncio.run(family_http(own, ask, "POST", path, b"")) is None
    assert asyncio.run(family_http(Families(), ask, "POST", "/v2/repository/index", b"")) is None


# -- gRPC -------------------------------------------------------------------------------------


def grpc(method: str, message: Any, known: Mapping[str, Any], index: Any = None) -> Any:
    """The answer's message, the code if it is an error, None if it is Triton's."""

    async def ask(method: str, message: bytes) -> GrpcReply:
        if index is not None:
            return GrpcReply("OK", "", index.SerializeToString())
        told = known.get(pb.ModelReadyRequest.FromString(message).name)
        if told is None:
            return GrpcReply("NOT_FOUND", "", b"")
        return GrpcReply("OK", "", told.SerializeToString())

    raw = message if isinstance(message, bytes) else message.SerializeToString()
    reply = asyncio.run(family_grpc(FAMILIES, ask, f"{SERVICE}{method}", raw))
    if reply is None or reply.code != "OK":
        return reply and reply.code
    return getattr(pb, f"{method}Response").FromString(bytes(reply.message))


def test_metadata_and_configuration_over_grpc() -> None:
    metadata = pb.ModelMetadataResponse(name="good", versions=["3"], platform="x")
    answer = grpc("ModelMetadata", pb.ModelMetadataRequest(name="c"), {"good": metadata})
    assert (answer.name, list(answer.versions), answer.platform) == ("c", ["1"], "x")
    config = pb.ModelConfigResponse()
    config.config.name = "good"
    answer = grpc("ModelConfig", pb.ModelConfigRequest(name="c", version="1"), {"good": config})
    assert answer.config.name == "c"
    assert grpc("ModelConfig", pb.ModelConfigRequest(name="c"), {}) == "NOT_FOUND"


def test_ready_and_statistics_over_grpc() -> None:
    ready = {
        "fast": pb.ModelReadyResponse(ready=False),
        "good": pb.ModelReadyResponse(ready=True),
    }
    assert grpc("ModelReady", pb.ModelReadyRequest(name="c"), ready).ready
    stats = {name: pb.ModelStatisticsResponse() for name in ("fast", "good")}
    for name, answer in stats.items():
        answer.model_stats.add(name=name)
    answer = grpc("ModelStatistics", pb.ModelStatisticsRequest(name="c"), stats)
    assert [entry.name for entry in answer.model_stats] == ["fast", "good"]


def test_the_index_over_grpc() -> None:
    index = pb.RepositoryIndexResponse()
    index.models.add(name="good", version="3", state="READY")
    answer = grpc("RepositoryIndex", pb.RepositoryIndexRequest(), {}, index)
    assert [(m.name, m.version, m.state) for m in answer.models][1] == ("c", "1", "READY")


def test_what_is_not_about_it_or_cannot_be_read_is_tritons_over_grpc() -> None:
    assert grpc("ModelMetadata", pb.ModelMetadataRequest(name="good"), {}) is None
    assert grpc("ModelMetadata", pb.ModelMetadataRequest(name="c", version="2"), {}) is None
    assert grpc("ServerLive", b"", {}) is None
    assert grpc("ModelReady", b"\xff", {}) is None
    with pytest.raises(VariantsOnly):
        grpc("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="c"), {})


def test_an_index_that_triton_refuses_stays() -> None:
    async def ask(method: str, message: bytes) -> GrpcReply:
        return GrpcReply("UNAVAILABLE", "", b"")

    reply = asyncio.run(family_grpc(FAMILIES, ask, f"{SERVICE}RepositoryIndex", b""))
    assert reply is not None
    assert reply.code == "UNAVAILABLE"
