"""Control calls about a model with variants, which Triton does not know by that name.

Rule: what a variant answers, under the family's name and version; the first variant that answers
well speaks for all. Ready: one of them is. Statistics: those of all. The index lists families
beside Triton's models. Loading and unloading is a matter of the variants.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import VariantsOnly
from tritonsched.proxy.families import VERSION, Families, is_version
from tritonsched.tensors import Buffer, GrpcReply, HttpReply

AskHttp = Callable[[str, str, Buffer], Awaitable[HttpReply]]
"""Method, raw path, body: asks as the client would."""
AskGrpc = Callable[[str, bytes], Awaitable[GrpcReply]]
"""Method, message: asks as the client would."""

_MODEL = re.compile(
    r"^/v2/models/([^/?]+)(?:/versions/([0-9]+))?(/ready|/config|/stats|)(?:\?.*)?$"
)
_INDEX = re.compile(r"^/v2/repository/(?:[^/]+/)?index(?:\?.*)?$")
_RELOAD = re.compile(r"^/v2/repository/(?:[^/]+/)?models/([^/?]+)/(?:load|unload)(?:\?.*)?$")
_OK = 200
_READY = "READY"

_INDEX_RPC = f"{SERVICE}RepositoryIndex"
_RELOAD_RPCS = {
    f"{SERVICE}RepositoryModelLoad": pb.RepositoryModelLoadRequest,
    f"{SERVICE}RepositoryModelUnload": pb.RepositoryModelUnloadRequest,
}
_STATISTICS_RPC = f"{SERVICE}ModelStatistics"
_RPCS: dict[str, tuple[Any, Any]] = {
    f"{SERVICE}ModelReady": (pb.ModelReadyRequest, pb.ModelReadyResponse),
    f"{SERVICE}ModelMetadata": (pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    f"{SERVICE}ModelConfig": (pb.ModelConfigRequest, pb.ModelConfigResponse),
    _STATISTICS_RPC: (pb.ModelStatisticsRequest, pb.ModelStatisticsResponse),
}


async def family_http(
    families: Families, ask: AskHttp, method: str, raw_path: str, body: Buffer
) -> HttpReply | None:
    """The answer; None: the call is not about a family. Raises VariantsOnly."""
    if not families.models:
        return None
    if method == "POST" and _INDEX.match(raw_path):
        return _indexed(families, await ask(method, raw_path, body))
    _require_no_reload(families, _RELOAD.match(raw_path))
    found = _MODEL.match(raw_path) if method == "GET" else None
    names = families.variants(found.group(1)) if found else ()
    if found is None or not names or not is_version(found.group(2) or ""):
        return None
    model, what = found.group(1), found.group(3)
    replies = [await ask(method, f"/v2/models/{name}{what}", body) for name in names]
    well = [reply for reply in replies if reply.status == _OK]
    if not well:
        return replies[0]
    if what == "/ready":
        return well[0]
    if what == "/stats":
        every = [stats for reply in well for stats in _read(reply)["model_stats"]]
        return _json(well[0], {"model_stats": every})
    told = {**_read(well[0]), "name": model}
    return _json(well[0], told if what else {**told, "versions": [VERSION]})


def _require_no_reload(families: Families, asked: re.Match[str] | None) -> None:
    if asked is not None:
        _require_own(families, asked.group(1))


def _require_own(families: Families, model: str) -> None:
    """Raises VariantsOnly, unless Triton has, or may have, a model of that very name."""
    names = families.variants(model)
    if names and model not in names:
        raise VariantsOnly(f"'{model}' has variants: load and unload {', '.join(names)}")


def _indexed(families: Families, reply: HttpReply) -> HttpReply:
    if reply.status != _OK:
        return reply
    entries = _read(reply)
    ready = {entry["name"] for entry in entries if entry.get("state") == _READY}
    return _json(reply, [*entries, *_entries(families, {e["name"] for e in entries}, ready)])


def _entries(families: Families, named: set[str], ready: set[str]) -> list[dict[str, str]]:
    """Families that have a ready variant, unless Triton lists a model of that name."""
    return [
        {"name": model, "version": VERSION, "state": _READY}
        for model in families.models
        if model not in named and not ready.isdisjoint(families.variants(model))
    ]


def _read(reply: HttpReply) -> Any:
    """Triton's own JSON."""
    return orjson.loads(bytes(reply.body))


def _json(reply: HttpReply, told: Any) -> HttpReply:
    headers = tuple(pair for pair in reply.headers if pair[0].lower() != "content-length")
    return HttpReply(reply.status, reply.reason, headers, orjson.dumps(told))


async def family_grpc(
    families: Families, ask: AskGrpc, method: str, message: bytes
) -> GrpcReply | None:
    """The answer; None: the call is not about a family. Raises VariantsOnly."""
    try:
        if method == _INDEX_RPC:
            return _indexed_rpc(families, await ask(method, message))
        if method in _RELOAD_RPCS:
            _require_own(families, _RELOAD_RPCS[method].FromString(message).model_name)
        if method not in _RPCS:
            return None
        request = _RPCS[method][0].FromString(message)
    except DecodeError:
        return None  # Triton's to refuse
    names = families.variants(request.name)
    if not names or not is_version(request.version):
        return None
    asked = [_RPCS[method][0](name=name).SerializeToString() for name in names]
    replies = [await ask(method, one) for one in asked]
    answers = [_RPCS[method][1].FromString(bytes(r.message)) for r in replies if r.code == "OK"]
    if not answers:
        return replies[0]
    return GrpcReply("OK", "", _told(method, request.name, answers).SerializeToString())


def _told(method: str, model: str, answers: list[Any]) -> Any:
    """One answer of those that went well, in the variants' order."""
    first = answers[0]
    if method == _STATISTICS_RPC:
        for other in answers[1:]:
            first.model_stats.extend(other.model_stats)
    elif isinstance(first, pb.ModelReadyResponse):
        first.ready = any(answer.ready for answer in answers)
    elif isinstance(first, pb.ModelConfigResponse):
        first.config.name = model
    else:
        first.name = model
        first.versions[:] = [VERSION]
    return first


def _indexed_rpc(families: Families, reply: GrpcReply) -> GrpcReply:
    if reply.code != "OK":
        return reply
    index = pb.RepositoryIndexResponse.FromString(bytes(reply.message))
    ready = {entry.name for entry in index.models if entry.state == _READY}
    for entry in _entries(families, {entry.name for entry in index.models}, ready):
        index.models.add(**entry)
    message = index.SerializeToString()
    return GrpcReply("OK", "", message, reply.initial_metadata, reply.trailing_metadata)
