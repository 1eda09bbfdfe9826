"""Model statistics over both protocols. Rule: Triton answers; the sidecar adds what only it knows.

What Triton says of a version of which nothing was merged, refused or kept waiting stays byte for
byte, and so does an answer that cannot be read. Members that we do not know stay as they are.
"""

import re
from collections.abc import Awaitable, Callable
from operator import getitem, setitem
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.proxy.tallies import Key, Mark, Tallies
from tritonsched.proxy.true_counts import COMPUTE, NAMES, Counts, Durations, as_clients_count
from tritonsched.tensors import GrpcReply, HttpReply

GRPC_STATISTICS = f"{SERVICE}ModelStatistics"
_PATH = re.compile(r"^/v2/models(?:/([^/?]+)(?:/versions/([0-9]+))?)?/stats(?:\?.*)?$")
_OK = 200

AskGrpc = Callable[[bytes], Awaitable[GrpcReply]]
"""A message: asks Triton with the client's own metadata."""
AskHttp = Callable[[str], Awaitable[HttpReply]]
"""A raw path: asks Triton with the client's own headers."""
Get = Callable[[Any, str], Any]
Put = Callable[[Any, str, Any], None]


async def grpc_statistics(tallies: Tallies, ask: AskGrpc, message: bytes) -> GrpcReply:
    """The answer to `ModelStatistics`."""
    try:
        request = pb.ModelStatisticsRequest.FromString(message)
    except DecodeError:
        return await ask(message)  # Triton's to refuse
    if request.version and tallies.is_open(request.name):
        whole = pb.ModelStatisticsRequest(name=request.name).SerializeToString()
        await _grpc_answer(tallies, ask, whole, request.name)
    model = None if request.version else request.name
    return await _grpc_answer(tallies, ask, message, model)


async def _grpc_answer(
    tallies: Tallies, ask: AskGrpc, message: bytes, model: str | None
) -> GrpcReply:
    mark = tallies.mark()
    reply = await ask(message)
    if reply.code != "OK" or tallies.is_empty:
        return reply
    try:
        answer = pb.ModelStatisticsResponse.FromString(bytes(reply.message))
    except DecodeError:
        return reply
    versions = [_Version(stats, getattr, setattr) for stats in answer.model_stats]
    if not _add(tallies, mark, versions, model):
        return reply
    told = answer.SerializeToString()
    return GrpcReply("OK", "", told, reply.initial_metadata, reply.trailing_metadata)


async def http_statistics(
    tallies: Tallies, ask: AskHttp, method: str, raw_path: str
) -> HttpReply | None:
    """The answer to a call for statistics; None: it is another call."""
    asked = _PATH.match(raw_path) if method == "GET" else None
    if asked is None:
        return None
    model, version = asked.group(1) or "", asked.group(2) or ""
    if version and tallies.is_open(model):
        await _http_answer(tallies, ask, f"/v2/models/{model}/stats", model)
    return await _http_answer(tallies, ask, raw_path, None if version else model)


async def _http_answer(
    tallies: Tallies, ask: AskHttp, raw_path: str, model: str | None
) -> HttpReply:
    mark = tallies.mark()
    reply = await ask(raw_path)
    if reply.status != _OK or tallies.is_empty:
        return reply
    try:
        answer = orjson.loads(bytes(reply.body))
        versions = [_Version(stats, getitem, setitem) for stats in answer["model_stats"]]
        added = _add(tallies, mark, versions, model)
    except (ValueError, TypeError, LookupError):
        return reply
    if not added:
        return reply
    headers = tuple(pair for pair in reply.headers if pair[0].lower() != "content-length")
    return HttpReply(reply.status, reply.reason, headers, orjson.dumps(answer))


class _Version:
    """One version's statistics, in a message or in JSON. get, put: how members of that are read and
    written. A wrong form raises LookupError or TypeError.
    """

    def __init__(self, stats: Any, get: Get, put: Put) -> None:
        self._stats = stats
        self._get = get
        self._put = put
        self.key: Key = (get(stats, "name"), get(stats, "version"))

    def read(self) -> Counts:
        get, stats = self._get, self._stats
        return Counts(
            rows=get(stats, "inference_count"),
            stats=self._durations(get(stats, "inference_stats"), NAMES),
            batches={
                get(batch, "batch_size"): self._durations(batch, COMPUTE)
                for batch in get(stats, "batch_stats")
            },
        )

    def write(self, counts: Counts) -> None:
        get, put = self._get, self._put
        put(self._stats, "inference_count", counts.rows)
        for name, (count, ns) in counts.stats.items():
            duration = get(get(self._stats, "inference_stats"), name)
            put(duration, "count", count)
            put(duration, "ns", ns)

    def _durations(self, of: Any, names: tuple[str, ...]) -> Durations:
        get = self._get
        found = ((name, get(of, name)) for name in names)
        return {name: (get(duration, "count"), get(duration, "ns")) for name, duration in found}


def _add(tallies: Tallies, mark: Mark, versions: list[_Version], model: str | None) -> bool:
    """Whether anything was added. Each is read before the first is written.

    model: whose versions these are, all of them; empty for all models; None: it is but one version.
    """
    read = {version.key: version.read() for version in versions}
    if model is not None:
        counts = {key: (c.stats["success"][0], c.stats["fail"][0]) for key, c in read.items()}
        tallies.compare(mark, counts, model=model)
    known = [(version, tallies.of(*version.key)) for version in versions]
    for version, tally in known:
        if tally is not None:
            told = as_clients_count(read[version.key], tally)
            tally.told = told.stats
            version.write(told)
    return any(tally is not None for _, tally in known)
