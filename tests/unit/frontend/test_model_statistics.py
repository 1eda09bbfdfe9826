"""Statistics on their way to a client: what is added, and that nothing else is touched."""

import json
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.unit.proxy.test_tallies import NEWEST, ONE, OTHER, answered, batch, many
from tritonsched.core.request import Outcome
from tritonsched.frontend.model_statistics import grpc_statistics, http_statistics
from tritonsched.proxy.tallies import Key, Tallies
from tritonsched.tensors import GrpcReply, HttpReply

UNKNOWN_FIELD = b"\x9a\x06\x03abc"  # field 99, of a Triton to come
SUCCESS, REFUSED_NS = 10, 150
NAMES = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit",
    "cache_miss",
)  # fmt: skip
HEADERS = (("Content-Type", "application/json"), ("Content-Length", "9"))


def as_json(*keys: Key) -> dict[str, Any]:
    """What Triton says, in its order; 10 requests a version, 100 ns of each part."""
    part = {"count": SUCCESS, "ns": 100}
    durations = {name: dict(part) for name in NAMES}
    durations["success"]["ns"] = 1000
    for name in ("fail", "cache_hit", "cache_miss"):
        durations[name] = {"count": 0, "ns": 0}
    sizes = [{"batch_size": 4, **dict.fromkeys(NAMES[3:6], part)}]
    return {
        "model_stats": [
            {
                "name": model,
                "version": version,
                "last_inference": 2**64 - 1,
                "inference_count": 10,
                "execution_count": 10,
                "inference_stats": durations,
                "response_stats": {},
                "batch_stats": sizes,
                "memory_usage": [],
                "to_come": 1.5,
            }
            for model, version in keys
        ]
    }


def as_message(*keys: Key) -> bytes:
    """The same as a message, with a field that we do not know in each part."""
    answer = pb.ModelStatisticsResponse()
    for stats in as_json(*keys)["model_stats"]:
        made = answer.model_stats.add(name=stats["name"], version=stats["version"])
        for name in ("last_inference", "inference_count", "execution_count"):
            setattr(made, name, stats[name])
        made.MergeFromString(UNKNOWN_FIELD)
        for name, duration in stats["inference_stats"].items():
            getattr(made.inference_stats, name).CopyFrom(pb.StatisticDuration(**duration))
        made.inference_stats.success.MergeFromString(UNKNOWN_FIELD)
        (size,) = stats["batch_stats"]
        sized = made.batch_stats.add(batch_size=size["batch_size"])
        for name in NAMES[3:6]:
            getattr(sized, name).CopyFrom(pb.StatisticDuration(**size[name]))
    return bytes(answer.SerializeToString())


class Upstream:
    """Triton's answers; asked: for what, in order."""

    def __init__(self, *keys: Key, body: bytes | None = None) -> None:
        self.asked: list[str] = []
        self._keys = keys
        self._body = body

    async def grpc(self, message: bytes) -> GrpcReply:
        request = pb.ModelStatisticsRequest.FromString(message)
        self.asked.append("/".join(filter(None, (request.name, request.version))))
        body = as_message(*self._found(request.version)) if self._body is None else self._body
        return GrpcReply("OK", "", body, (("a", "b"),), (("c", "d"),))

    async def http(self, raw_path: str) -> HttpReply:
        self.asked.append(raw_path)
        version = raw_path.partition("/versions/")[2].partition("/")[0]
        body = json.dumps(as_json(*self._found(version)), separators=(",", ":")).encode()
        return HttpReply(200, "OK", HEADERS, body if self._body is None else self._body)

    def _found(self, version: str) -> list[Key]:
        return [key for key in self._keys if not version or key[1] == version]


def asking(name: str = "", version: str = "") -> bytes:
    return bytes(pb.ModelStatisticsRequest(name=name, version=version).SerializeToString())


def parsed(reply: GrpcReply) -> list[Any]:
    return list(pb.ModelStatisticsResponse.FromString(bytes(reply.message)).model_stats)


async def over(wire: str, tallies: Tallies, up: Upstream, model: str, version: str = "") -> Any:
    """The versions' statistics as JSON has them, asked for over that protocol."""
    if wire == "http":
        of = f"/{model}" if model else ""
        path = f"/v2/models{of}{f'/versions/{version}' if version else ''}/stats"
        reply = await http_statistics(tallies, up.http, "GET", path)
        assert reply is not None
        return json.loads(bytes(reply.body))["model_stats"]
    answer = await grpc_statistics(tallies, up.grpc, asking(model, version))
    return [
        {
            "version": stats.version,
            "inference_stats": {
                name: {
                    "count": getattr(stats.inference_stats, name).count,
                    "ns": getattr(stats.inference_stats, name).ns,
                }
                for name in NAMES
            },
        }
        for stats in parsed(answer)
    ]


WIRES = pytest.mark.parametrize("wire", ["http", "grpc"])


@WIRES
async def test_members_waits_and_refusals_are_added_on_both_protocols(wire: str) -> None:
    tallies = Tallies()
    answered(tallies, batch(members=4))
    tallies.on_outcomes((batch(first_id=9).requests[0],), Outcome.EXPIRED, "", REFUSED_NS)
    (stats,) = await over(wire, tallies, Upstream(ONE), "m")
    durations = stats["inference_stats"]
    waited = 100 + 90 + 80 + 70
    assert durations["queue"] == {"count": 13, "ns": 100 + 30 + waited}
    assert durations["compute_infer"] == {"count": 13, "ns": 130}
    assert durations["success"] == {"count": 13, "ns": 1000 + 3 * 100 + waited}
    assert durations["fail"] == {"count": 1, "ns": REFUSED_NS}
    assert durations["cache_miss"] == {"count": 0, "ns": 0}


@WIRES
async def test_every_model_has_its_own(wire: str) -> None:
    """The answer for all models; one of which nothing was counted is as Triton has it."""
    tallies = Tallies()
    many(tallies, ONE, 2)
    first, second = await over(wire, tallies, Upstream(ONE, OTHER), "")
    assert first["inference_stats"]["success"]["count"] == SUCCESS + 2
    assert second["inference_stats"]["success"] == {"count": SUCCESS, "ns": 1000}


@WIRES
async def test_one_version_asked_for_is_given_what_its_clients_asked_of_the_newest(
    wire: str,
) -> None:
    """Triton is asked which that is, once."""
    tallies = Tallies()
    many(tallies, NEWEST, 2)
    upstream = Upstream(ONE, ("m", "2"))
    counts = [
        (await over(wire, tallies, upstream, "m", version))[0]["inference_stats"]["success"]
        for version in ("1", "2")
    ]
    assert [count["count"] for count in counts] == [SUCCESS, SUCCESS + 2]
    assert len(upstream.asked) == 3


async def test_a_message_keeps_what_we_do_not_know_and_its_metadata() -> None:
    tallies = Tallies()
    answered(tallies, batch())
    reply = await grpc_statistics(tallies, Upstream(ONE).grpc, asking("m"))
    (stats,) = parsed(reply)
    assert bytes(reply.message).count(UNKNOWN_FIELD) == 2
    assert (stats.last_inference, stats.execution_count) == (2**64 - 1, 10)
    assert (reply.initial_metadata, reply.trailing_metadata) == ((("a", "b"),), (("c", "d"),))


async def test_json_keeps_its_order_its_numbers_and_what_we_do_not_know() -> None:
    tallies = Tallies()
    answered(tallies, batch(members=1))
    reply = await http_statistics(tallies, Upstream(ONE).http, "GET", "/v2/models/stats?a=b")
    assert reply is not None
    expected = as_json(ONE)
    durations = expected["model_stats"][0]["inference_stats"]
    durations["queue"]["ns"] += 100
    durations["success"]["ns"] += 100
    assert bytes(reply.body) == json.dumps(expected, separators=(",", ":")).encode()
    assert reply.headers == HEADERS[:1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"\xff",
        b"[]",
        b'{"model_stats":1}',
        b'{"model_stats":[{}]}',
        b'{"model_stats":[{"name":"m","version":"1","inference_count":1,"inference_stats":[]}]}',
    ],
)
async def test_an_answer_that_cannot_be_read_is_passed_on(body: bytes) -> None:
    tallies = Tallies()
    answered(tallies, batch())
    upstream = Upstream(ONE, body=body)
    http = await http_statistics(tallies, upstream.http, "GET", "/v2/models/m/stats")
    grpc = await grpc_statistics(tallies, upstream.grpc, asking("m"))
    assert http == HttpReply(200, "OK", HEADERS, body)
    assert bytes(grpc.message) == body


async def test_where_nothing_was_counted_the_answer_is_not_even_read() -> None:
    upstream = Upstream(body=b"{ }")
    reply = await http_statistics(Tallies(), upstream.http, "GET", "/v2/models/stats")
    assert reply is not None
    assert bytes(reply.body) == b"{ }"
    grpc = await grpc_statistics(Tallies(), upstream.grpc, asking())
    assert bytes(grpc.message) == b"{ }"


async def test_a_version_without_a_tally_stays_byte_for_byte() -> None:
    tallies = Tallies()
    many(tallies, OTHER, 1)
    upstream = Upstream(ONE)
    reply = await grpc_statistics(tallies, upstream.grpc, asking("m"))
    assert reply.message == as_message(ONE)
    http = await http_statistics(tallies, upstream.http, "GET", "/v2/models/m/stats")
    assert http == await upstream.http("/v2/models/m/stats")


async def test_errors_are_tritons() -> None:
    tallies = Tallies()
    answered(tallies, batch())
    unknown = HttpReply(400, "Bad Request", (), b'{"error":"no"}')
    missing = GrpcReply("NOT_FOUND", "no", b"")

    async def http(_raw_path: str) -> HttpReply:
        return unknown

    async def grpc(_message: bytes) -> GrpcReply:
        return missing

    assert await http_statistics(tallies, http, "GET", "/v2/models/x/stats") is unknown
    assert await grpc_statistics(tallies, grpc, b"\xff") is missing


@pytest.mark.parametrize(
    ("method", "raw_path"),
    [
        ("POST", "/v2/models/m/stats"),
        ("GET", "/v2/models/m/stats/"),
        ("GET", "/v2/models//stats"),
        ("GET", "/v2/models/m/versions/x/stats"),
        ("GET", "/v2/models/m/config"),
    ],
)
async def test_other_calls_are_none_of_its_business(method: str, raw_path: str) -> None:
    upstream = Upstream()
    assert await http_statistics(Tallies(), upstream.http, method, raw_path) is None
    assert upstream.asked == []
