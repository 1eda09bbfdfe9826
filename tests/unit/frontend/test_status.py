"""What an error becomes on either wire."""

from collections.abc import Iterator

import grpc
import orjson
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from structlog.testing import capture_logs

from tritonsched import errors
from tritonsched.errors import Overloaded, QueueFull, TritonschedError
from tritonsched.frontend.status import grpc_status, http_reply

S = 1_000_000_000


def family(kind: type[TritonschedError]) -> Iterator[type[TritonschedError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


KINDS = sorted(
    (kind for kind in family(TritonschedError) if kind.__module__ == errors.__name__),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_a_reason_and_its_text_on_both_wires(
    kind: type[TritonschedError],
) -> None:
    error = kind("what, where, what to do: é")
    reply = http_reply(error)
    assert reply.status == kind.http_status >= 400
    assert dict(reply.headers) == {
        "Content-Type": "application/json",
        "x-tritonsched-reason": kind.reason,
    }
    assert orjson.loads(reply.body) == {"error": str(error)}
    code, details, trailers = grpc_status(error)
    assert (code.name, details) == (kind.grpc_code, str(error))
    assert trailers == (("x-tritonsched-reason", kind.reason),)


def test_the_tree_has_the_families_of_design() -> None:
    """Too late, no room, away: the three refusals a client must tell apart."""
    table = {kind.__name__: (kind.http_status, kind.grpc_code) for kind in KINDS}
    assert table["DeadlineExpired"] == (504, "DEADLINE_EXCEEDED")
    assert table["QueueFull"] == (429, "RESOURCE_EXHAUSTED")
    assert table["TritonUnavailable"] == (503, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("ns", "seconds", "ms"),
    [(0, "1", "1"), (1, "1", "1"), (S // 2, "1", "500"), (S, "1", "1000"), (S + 1, "2", "1001")],
)
def test_the_hint_is_rounded_up_and_never_zero(ns: int, seconds: str, ms: str) -> None:
    error = QueueFull("full", retry_after_ns=ns)
    headers = dict(http_reply(error).headers)
    assert (headers["Retry-After"], headers["retry-after-ms"]) == (seconds, ms)
    assert dict(grpc_status(error)[2])["retry-after-ms"] == ms


def test_grpc_has_the_hint_as_retry_info() -> None:
    """google.rpc.Status in `grpc-status-details-bin`, as gRPC's own libraries read it."""
    code, details, trailers = grpc_status(Overloaded("busy", retry_after_ns=2 * S + 5))
    packed = dict(trailers)["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = Status.FromString(packed)
    assert (status.code, status.message) == (code.value[0], details)
    info = RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.retry_delay.seconds, info.retry_delay.nanos) == (2, 5)


def test_an_unforeseen_error_is_logged_and_told_without_its_insides() -> None:
    with capture_logs() as logs:
        reply = http_reply(ValueError("secret"))
        code, details, trailers = grpc_status(ValueError("secret"))
    assert (reply.status, code) == (500, grpc.StatusCode.INTERNAL)
    assert dict(reply.headers)["x-tritonsched-reason"] == "internal"
    assert dict(trailers) == {"x-tritonsched-reason": "internal"}
    assert b"secret" not in bytes(reply.body)
    assert "secret" not in details
    assert [str(log["exc_info"]) for log in logs] == ["secret", "secret"]


def test_an_error_of_ours_is_not_logged() -> None:
    """Refusals are counted, not logged: the hot path logs nothing."""
    with capture_logs() as logs:
        http_reply(QueueFull("full"))
    assert logs == []
