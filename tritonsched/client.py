"""For clients: reserve a periodic stream and keep its time, on top of tritonclient.

    with reserve("localhost:8000", "classify_lite0", inputs, period_ms=40,
                 relative_deadline_ms=60, frames=250) as stream:
        for frame in stream:  # comes when the frame is expected
            client.infer("classify_lite0", inputs, headers=stream.headers)

Rule: what tritonclient does, it does; here is only what it does not know. Blocking, and no part of
the sidecar. `inputs` and `outputs` are tritonclient's, of either protocol; their form is what is
reserved, so frames must have the same.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from tritonsched.frontend import reservations_pb2

pb: Any = reservations_pb2
TIMEOUT_S = 60.0  # for the answer, which a plan of many streams may take a second to find
_SERVICE = "/tritonsched.Reservations/"


class NotReserved(Exception):
    """The stream is not kept. reason: as in `x-tritonsched-reason`. nearest: what would be."""

    def __init__(self, text: str, reason: str, nearest: dict[str, Any]) -> None:
        super().__init__(text)
        self.reason = reason
        self.nearest = nearest


@dataclass(slots=True)
class ReservedStream:
    """A granted stream. starts_s: `time.monotonic` of its first frame. Iterate over it for the
    frames' numbers, each when it is expected; a frame that is past is skipped.
    """

    id: str
    period_s: float
    frames: int
    starts_s: float
    _release: Callable[[str], None]

    @property
    def headers(self) -> dict[str, str]:
        """To be sent with each frame: HTTP headers, gRPC metadata."""
        return {"x-tritonsched-reservation": self.id}

    def __iter__(self) -> Iterator[int]:
        pause = threading.Event()
        for frame in range(self.frames):
            left_s = self.starts_s + frame * self.period_s - time.monotonic()
            if left_s > -self.period_s / 2:
                pause.wait(max(0.0, left_s))
                yield frame

    def release(self) -> None:
        """The stream ends."""
        self._release(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def reserve(
    url: str,
    model_name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any] = (),
    *,
    model_version: str = "",
    **stream: Any,
) -> ReservedStream:
    """Over HTTP. url: host:port. stream: period_ms, relative_deadline_ms, frames or duration_s, and
    what else README, "Reservations", lists. Raises NotReserved, OSError.
    """
    version = f"/versions/{model_version}" if model_version else ""
    path = f"/v2/models/{model_name}{version}/reservations"
    wanted = stream | {"inputs": [_spec(tensor) for tensor in inputs]}
    wanted["outputs"] = [output.name() for output in outputs]
    status, said = _ask(url, "POST", path, json.dumps(wanted).encode())
    if status != http.HTTPStatus.CREATED:
        text, nearest = said.get("error", f"HTTP {status}"), said.get("nearest", {})
        raise NotReserved(text, said.get("reason", "bad-reservation"), nearest)

    def release(name: str) -> None:
        _ask(url, "DELETE", f"/v2/models/{model_name}/reservations/{name}", b"")

    return _made(said, release)


def reserve_grpc(
    url: str,
    model_name: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any] = (),
    *,
    model_version: str = "",
    **stream: Any,
) -> ReservedStream:
    """The same over gRPC. Raises NotReserved, grpc.RpcError."""
    wanted = pb.ReserveRequest(
        model_name=model_name,
        model_version=model_version,
        inputs=[pb.Tensor(**_spec(tensor)) for tensor in inputs],
        outputs=[output.name() for output in outputs],
        **stream,
    )
    response = _call(url, "Reserve", wanted, pb.ReserveResponse)
    if response.HasField("refused"):
        nearest = {field.name: value for field, value in response.refused.nearest.ListFields()}
        reason = response.refused.reason
        raise NotReserved(f"model '{model_name}': the stream is not kept", reason, nearest)
    granted = response.granted
    said = {name: getattr(granted, name) for name in ("id", "period_ms", "frames", "starts_in_ms")}

    def release(name: str) -> None:
        _call(url, "Release", pb.ReleaseRequest(id=name), pb.ReleaseResponse)

    return _made(said, release)


def _spec(tensor: Any) -> dict[str, Any]:
    shape = [int(extent) for extent in tensor.shape()]
    return {"name": tensor.name(), "datatype": tensor.datatype(), "shape": shape}


def _made(said: dict[str, Any], release: Callable[[str], None]) -> ReservedStream:
    starts_s = time.monotonic() + said["starts_in_ms"] / 1e3  # late by the answer's way back
    return ReservedStream(said["id"], said["period_ms"] / 1e3, said["frames"], starts_s, release)


def _ask(url: str, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(url, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    return response.status, json.loads(raw) if raw else {}


def _call(url: str, name: str, request: Any, response: Any) -> Any:
    with grpc.insecure_channel(url) as channel:
        method = channel.unary_unary(
            f"{_SERVICE}{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return method(request, timeout=TIMEOUT_S)
