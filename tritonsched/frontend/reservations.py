"""Reservations over HTTP and gRPC: the one thing here that Triton does not know.

    POST   /v2/models/M[/versions/V]/reservations        201 granted, 409 refused, 400, 404
    GET    /v2/models/M/reservations[/ID]                200, 404
    DELETE /v2/models/M/reservations/ID                  204, 404

Rule: an answer that is no is an answer: its reason, and the nearest that would be yes. Over gRPC
the service `tritonsched.Reservations` of reservations.proto says the same.
"""

import re
import time
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from tritonsched.core.batch import Refuse
from tritonsched.errors import BadReservation, ClientError, UnknownReservation
from tritonsched.frontend import reservations_pb2
from tritonsched.frontend.service import InferService
from tritonsched.frontend.status import REASON
from tritonsched.proxy.reserving import Entry
from tritonsched.proxy.wish import Wish, from_json
from tritonsched.tensors import Buffer, HttpReply

pb: Any = reservations_pb2  # it has no stubs
BODY_BYTES_MAX = 64 * 1024
_PATH = re.compile(
    r"^/v2/models/([^/?]+)(?:/versions/([0-9]+))?/reservations(?:/([^/?]+))?(?:\?.*)?$"
)
_JSON = ("Content-Type", "application/json")
_SERVICE = "/tritonsched.Reservations/"
GRPC_METHODS = frozenset(f"{_SERVICE}{name}" for name in ("Reserve", "List", "Release"))


async def reservation_http(
    service: InferService, method: str, raw_path: str, body: Buffer
) -> HttpReply | None:
    """The answer to a call about reservations; None: it is another call. Raises ClientError."""
    match = _PATH.match(raw_path)
    if match is None:
        return None
    model, version, name = match.group(1), match.group(2) or "", match.group(3)
    if method == "POST" and name is None:
        return _reserved(await service.reserve(from_json(model, version, _object(body))))
    if method == "GET" and name is None:
        listed = [_shown(entry) for entry in service.reservations.listed(model)]
        return HttpReply(200, "OK", (_JSON,), orjson.dumps({"reservations": listed}))
    if method == "GET":
        return HttpReply(200, "OK", (_JSON,), orjson.dumps(_shown(_known(service, name, model))))
    if method == "DELETE" and name is not None:
        service.reservations.release(_known(service, name, model).name)
        return HttpReply(204, "No Content", (), b"")
    error = orjson.dumps({"error": "Method Not Allowed"})
    allowed = "GET, POST" if name is None else "GET, DELETE"
    return HttpReply(405, "Not Allowed", (_JSON, ("Allow", allowed)), error)


def _object(body: Buffer) -> dict[str, object]:
    """Raises BadReservation."""
    if len(body) > BODY_BYTES_MAX:
        raise BadReservation(f"the body is larger than {BODY_BYTES_MAX} bytes")
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadReservation(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise BadReservation("the body is not a JSON object")
    return given


def _reserved(outcome: Entry | Refuse) -> HttpReply:
    if isinstance(outcome, Entry):
        place = f"/v2/models/{outcome.reservation.model}/reservations/{outcome.name}"
        body = orjson.dumps(_shown(outcome))
        return HttpReply(201, "Created", (_JSON, ("Location", place)), body)
    reason = outcome.reason.value
    said = {"error": _words(outcome), "reason": reason, "nearest": _nearest(outcome)}
    return HttpReply(409, "Conflict", (_JSON, (REASON, reason)), orjson.dumps(said))


def _known(service: InferService, name: str, model: str = "") -> Entry:
    """Raises UnknownReservation."""
    entry = service.reservations.entry(name)
    if entry is None or model not in ("", entry.reservation.model):
        raise UnknownReservation(f"there is no reservation '{name[:64]}' of model '{model}'")
    return entry


def _words(refusal: Refuse) -> str:
    return f"model '{refusal.reservation.model}': the stream is not kept: {refusal.reason.value}"


def _nearest(refusal: Refuse) -> dict[str, float | str]:
    """What would have been granted, each with all else as asked."""
    nearest = refusal.nearest
    found: dict[str, float | str] = {}
    if nearest is not None and nearest.period_ns is not None:
        found["period_ms"] = nearest.period_ns / 1e6
    if nearest is not None and nearest.relative_deadline_ns is not None:
        found["relative_deadline_ms"] = nearest.relative_deadline_ns / 1e6
    if nearest is not None and nearest.model is not None:
        found["model_name"] = nearest.model
    return found


def _shown(entry: Entry) -> dict[str, Any]:
    made = entry.reservation
    return {
        "id": entry.name,
        "model_name": made.model,
        "state": entry.state.value,
        "period_ms": made.period_ns / 1e6,
        "relative_deadline_ms": made.relative_deadline_ns / 1e6,
        "frames": made.frames,
        "jitter_ms": made.jitter_ns / 1e6,
        "starts_in_ms": (made.start_ns - time.monotonic_ns()) / 1e6,
        "device": entry.device,
        "tenant": made.tenant,
    }


# -- gRPC -------------------------------------------------------------------------------------


async def reservation_grpc(service: InferService, method: str, message: bytes) -> bytes:
    """The answer to a method of GRPC_METHODS. Raises ClientError."""
    name = method.removeprefix(_SERVICE)
    try:
        request = getattr(pb, f"{name}Request").FromString(message)
    except DecodeError as error:
        raise ClientError(f"the message is no {name}Request: {error}") from error
    if name == "Reserve":
        reply = _response(await service.reserve(_wish(request)))
    elif name == "List":
        entries = service.reservations.listed(request.model_name)
        reply = pb.ListResponse(reservations=[pb.Reservation(**_shown(e)) for e in entries])
    else:
        service.reservations.release(_known(service, request.id).name)
        reply = pb.ReleaseResponse()
    encoded: bytes = reply.SerializeToString()
    return encoded


def _response(outcome: Entry | Refuse) -> Any:
    if isinstance(outcome, Entry):
        return pb.ReserveResponse(granted=pb.Reservation(**_shown(outcome)))
    nearest = pb.Nearest(**_nearest(outcome))
    return pb.ReserveResponse(refused=pb.Refusal(reason=outcome.reason.value, nearest=nearest))


def _wish(request: Any) -> Wish:
    """Its numbers are checked as over HTTP; what is not set is absent."""
    given = {
        name: getattr(request, name) for name in ("jitter_ms", "weight") if request.HasField(name)
    }
    inputs = tuple((t.name, t.datatype, tuple(t.shape)) for t in request.inputs)
    return Wish(
        model=request.model_name,
        version=request.model_version,
        period_ms=request.period_ms,
        relative_deadline_ms=request.relative_deadline_ms,
        frames=request.frames or None,
        duration_s=request.duration_s or None,
        start_in_ms=request.start_in_ms,
        inputs=inputs,
        outputs=tuple(request.outputs),
        tenant=request.tenant,
        **given,
    )
