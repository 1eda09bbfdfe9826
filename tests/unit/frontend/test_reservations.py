"""Reservations as clients see them, over HTTP and gRPC: the same words for the same thing."""

from typing import Any

import orjson
import pytest

from tests.helpers import MS
from tests.unit.frontend.services import Service
from tritonsched.core.batch import Grant, Refuse
from tritonsched.core.proposal import Nearest
from tritonsched.core.reservation import RefusalReason, Reservation
from tritonsched.errors import BadReservation, ClientError, UnknownReservation
from tritonsched.frontend import reservations_pb2
from tritonsched.frontend.reservations import (
    BODY_BYTES_MAX,
    reservation_grpc,
    reservation_http,
)
from tritonsched.proxy.reserving import Entry
from tritonsched.tensors import HttpReply

pb: Any = reservations_pb2
STREAM = Reservation(7, "m", period_ns=20 * MS, relative_deadline_ns=40 * MS, frames=5, tenant="t")
SAID = {
    "id": "7", "model_name": "m", "state": "granted", "period_ms": 20.0, "frames": 5,
    "relative_deadline_ms": 40.0, "jitter_ms": 0.0, "device": "gpu:0", "tenant": "t",
}  # fmt: skip
NO = Refuse(STREAM, RefusalReason.UNSCHEDULABLE, Nearest(period_ns=25 * MS, model="fast"))
BODY = b'{"period_ms":20,"relative_deadline_ms":40,"frames":5}'


def knowing() -> Service:
    """A service with one granted stream."""
    service = Service()
    service.reservations._entries["7"] = Entry(STREAM, "gpu:0")
    service.reservations._ends["7"] = _Timer()  # type: ignore[assignment]
    return service


class _Timer:
    def cancel(self) -> None:
        """Nothing runs."""


async def http(service: Service, method: str, path: str, body: bytes = b"") -> HttpReply:
    reply = await reservation_http(service, method, path, body)
    assert reply is not None
    return reply


def members(reply: HttpReply) -> Any:
    return orjson.loads(bytes(reply.body))


async def grpc_said(service: Service, name: str, request: Any) -> Any:
    message = await reservation_grpc(
        service, f"/tritonsched.Reservations/{name}", request.SerializeToString()
    )
    return getattr(pb, f"{name}Response").FromString(message)


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models/m/infer", "/v2/reservations"])
async def test_other_paths_are_not_ours(path: str) -> None:
    assert await reservation_http(Service(), "GET", path, b"") is None


async def test_a_granted_stream_is_told_with_its_place() -> None:
    service = Service()
    service.outcome = Entry(STREAM, "gpu:0")
    reply = await http(service, "POST", "/v2/models/m/versions/3/reservations", BODY)
    told = members(reply)
    assert (reply.status, dict(reply.headers)["Location"]) == (201, "/v2/models/m/reservations/7")
    assert {key: told[key] for key in SAID} == SAID
    assert told["starts_in_ms"] < 0
    assert (service.wishes[0].model, service.wishes[0].version) == ("m", "3")


async def test_a_refused_stream_is_told_the_nearest() -> None:
    service = Service()
    service.outcome = NO
    reply = await http(service, "POST", "/v2/models/m/reservations", BODY)
    told = members(reply)
    assert (reply.status, dict(reply.headers)["x-tritonsched-reason"]) == (409, "unschedulable")
    assert (told["reason"], told["nearest"]) == (
        "unschedulable",
        {"period_ms": 25.0, "model_name": "fast"},
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b" " * (BODY_BYTES_MAX + 1), "larger than"),
        (b'{"period_ms":"x"}', "'period_ms' is not a number"),
    ],
)
async def test_a_body_that_says_no_stream_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(BadReservation, match=text):
        await http(Service(), "POST", "/v2/models/m/reservations", body)


async def test_streams_are_listed_looked_up_and_released() -> None:
    service = knowing()
    (listed,) = members(await http(service, "GET", "/v2/models/m/reservations"))["reservations"]
    one = members(await http(service, "GET", "/v2/models/m/reservations/7"))
    assert listed["id"] == one["id"] == "7"
    assert members(await http(service, "GET", "/v2/models/n/reservations")) == {"reservations": []}
    reply = await http(service, "DELETE", "/v2/models/m/reservations/7")
    assert (reply.status, reply.body, service.said) == (204, b"", ["release 7"])
    with pytest.raises(UnknownReservation, match="no reservation '7' of model 'm'"):
        await http(service, "GET", "/v2/models/m/reservations/7")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v2/models/m/reservations", "GET, POST"),
        ("POST", "/v2/models/m/reservations/7", "GET, DELETE"),
    ],
)
async def test_another_method_is_told_which_are_allowed(
    method: str, path: str, allowed: str
) -> None:
    reply = await http(knowing(), method, path)
    assert (reply.status, dict(reply.headers)["Allow"]) == (405, allowed)


async def test_a_stream_of_another_model_is_not_found() -> None:
    with pytest.raises(UnknownReservation):
        await http(knowing(), "DELETE", "/v2/models/n/reservations/7")


async def test_grpc_says_the_same() -> None:
    service = knowing()
    service.outcome = service.reservations.entry("7")
    wanted = pb.ReserveRequest(
        model_name="m", period_ms=20, relative_deadline_ms=40, frames=5, jitter_ms=0,
        inputs=[pb.Tensor(name="IN", datatype="FP32", shape=[1, 4])], outputs=["OUT"],
    )  # fmt: skip
    granted = (await grpc_said(service, "Reserve", wanted)).granted
    assert {key: getattr(granted, key) for key in SAID} == SAID
    (wish,) = service.wishes
    assert (wish.inputs, wish.outputs) == ((("IN", "FP32", (1, 4)),), ("OUT",))
    assert (wish.jitter_ms, wish.weight, wish.duration_s) == (0.0, 1.0, None)
    listed = (await grpc_said(service, "List", pb.ListRequest())).reservations
    assert [entry.id for entry in listed] == ["7"]
    await grpc_said(service, "Release", pb.ReleaseRequest(id="7"))
    assert service.said == ["release 7"]
    with pytest.raises(UnknownReservation):
        await grpc_said(service, "Release", pb.ReleaseRequest(id="7"))


async def test_grpc_tells_a_refusal_as_an_answer() -> None:
    service = Service()
    service.outcome = NO
    refused = (await grpc_said(service, "Reserve", pb.ReserveRequest(frames=5))).refused
    assert (refused.reason, refused.nearest.period_ms) == ("unschedulable", 25.0)
    assert refused.nearest.model_name == "fast"
    with pytest.raises(ClientError, match="no ReserveRequest"):
        await reservation_grpc(service, "/tritonsched.Reservations/Reserve", b"\xff")


async def test_an_answer_in_time_is_kept_until_the_streams_end() -> None:
    """What the core grants is what a frame that names it gets."""
    service = Service()
    reservations = service.reservations
    reservations.decided(Grant(STREAM, "gpu:0", ()))
    assert service.said == ["release 7"]  # nobody asked, or not any more
    assert reservations.of("7") is None
