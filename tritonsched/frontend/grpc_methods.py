"""What Triton's gRPC port does with each method, whichever library speaks HTTP/2.

Rule: messages are bytes, every outcome is a GrpcReply, nothing here knows a server. `ModelInfer` is
ours; streams are relayed (`grpc_stream`); the other methods are forwarded. A server that cancels
what it awaits here (its client left, or its client's deadline passed) drops queued work.
"""

import contextlib
import time
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import SERVICE, Metadata, end_to_end
from tritonsched.errors import TritonschedError
from tritonsched.frontend import grpc_regions
from tritonsched.frontend.family_calls import family_grpc
from tritonsched.frontend.grpc_codec import decode, encode
from tritonsched.frontend.model_statistics import GRPC_STATISTICS, grpc_statistics
from tritonsched.frontend.reservations import GRPC_METHODS, reservation_grpc
from tritonsched.frontend.service import InferService
from tritonsched.frontend.status import EXPLAIN, grpc_status
from tritonsched.proxy.asked import FILE
from tritonsched.proxy.families import VARIANT
from tritonsched.proxy.shield import Load
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, MergedReply

INFER = f"{SERVICE}ModelInfer"
STREAM = f"{SERVICE}ModelStreamInfer"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_NOT_SERVING = b"\x08\x02"  # HealthCheckResponse(status=NOT_SERVING)
_READY = f"{SERVICE}ServerReady"
_LOAD = f"{SERVICE}RepositoryModelLoad"
_RELOADS: dict[str, Any] = {
    _LOAD: pb.RepositoryModelLoadRequest,
    f"{SERVICE}RepositoryModelUnload": pb.RepositoryModelUnloadRequest,
}
_FORWARDED = frozenset(
    f"{SERVICE}{name}"
    for name in (
        "ServerLive", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig",
        "ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
    )
)  # fmt: skip
UNARY = frozenset({INFER, HEALTH_CHECK, _READY, *_RELOADS, *_FORWARDED, *GRPC_METHODS})
"""Methods with one message each way. Any but these and STREAM is UNIMPLEMENTED, as with Triton."""


class GrpcMethods:
    """The methods, served from `service` and `upstream`."""

    def __init__(self, service: InferService, upstream: GrpcCalls) -> None:
        self._service = service
        self._upstream = upstream

    async def unary(
        self, method: str, message: bytes, metadata: Metadata, *, remaining_ns: int | None
    ) -> GrpcReply:
        """Answer a method of UNARY. Never raises: whatever goes wrong is a status with its reason.

        metadata: as it came. remaining_ns: what is left of the client's gRPC deadline.
        """
        received_ns = time.monotonic_ns()
        kept = end_to_end(metadata)
        try:
            if method == INFER:
                return await self._infer(message, kept, received_ns, remaining_ns)
            answer = await self._family(method, message, kept)
            if answer is not None:
                return answer
            if method in _RELOADS:
                return await self._reload(method, message, kept)
            if method in grpc_regions.CALLS:
                return await self._regions(method, message, kept)
            if method == GRPC_STATISTICS:
                return await self._statistics(message, kept)
            if method in GRPC_METHODS:
                return GrpcReply("OK", "", await reservation_grpc(self._service, method, message))
            reply = await self._upstream.unary(method, message, kept)
        except Exception as error:  # the boundary: whatever it is becomes a status
            return error_reply(error)
        return self._and_ours(method, reply)

    async def _infer(
        self, message: bytes, metadata: Metadata, received_ns: int, remaining_ns: int | None
    ) -> GrpcReply:
        call = decode(message, metadata, received_ns=received_ns, remaining_ns=remaining_ns)
        return as_grpc(await self._service.infer(call), call)

    async def _family(self, method: str, message: bytes, metadata: Metadata) -> GrpcReply | None:
        families = self._service.families

        async def ask(method: str, message: bytes) -> GrpcReply:
            if method == GRPC_STATISTICS:
                return await self._statistics(message, metadata)
            return await self._upstream.unary(method, message, metadata)

        return await family_grpc(families, ask, method, message) if families.models else None

    async def _regions(self, method: str, message: bytes, metadata: Metadata) -> GrpcReply:
        async def ask(method: str, message: bytes) -> GrpcReply:
            return await self._upstream.unary(method, message, metadata)

        return await grpc_regions.region_call(self._service, ask, method, message)

    async def _statistics(self, message: bytes, metadata: Metadata) -> GrpcReply:
        async def ask(message: bytes) -> GrpcReply:
            return await self._upstream.unary(GRPC_STATISTICS, message, metadata)

        return await grpc_statistics(self._service.tallies, ask, message)

    async def _reload(self, method: str, message: bytes, metadata: Metadata) -> GrpcReply:
        with contextlib.suppress(DecodeError):  # an undecodable one is Triton's to refuse
            request = _RELOADS[method].FromString(message)
            if method == _LOAD:
                self._service.shield.require(_load_of(request))
            await self._service.invalidate(request.model_name)
        try:
            return await self._upstream.unary(method, message, metadata)
        finally:
            await self._service.invalidate("")

    def _and_ours(self, method: str, reply: GrpcReply) -> GrpcReply:
        """Readiness is Triton's word AND our own."""
        if reply.code != "OK" or self._service.is_ready or method not in (_READY, HEALTH_CHECK):
            return reply
        message = _NOT_SERVING if method == HEALTH_CHECK else b""  # ServerReadyResponse: not ready
        return GrpcReply("OK", "", message, reply.initial_metadata, reply.trailing_metadata)


def _load_of(request: Any) -> Load:
    names = [name for name in request.parameters if name.startswith(FILE)]
    return Load(request.model_name, tuple(name.removeprefix(FILE) for name in names))


def remaining_ns(left_s: float | None) -> int | None:
    """What is left of a client's gRPC deadline, from seconds as gRPC libraries tell it."""
    return None if left_s is None else int(min(left_s, 1e9) * 1e9)


def as_grpc(answer: Answer, call: InferCall) -> GrpcReply:
    """Any answer as a gRPC one."""
    match answer:
        case MergedReply():
            told = ((VARIANT, answer.variant),) if answer.variant else ()
            return GrpcReply("OK", "", encode(answer, call), (), told, explain=answer.explain)
        case GrpcReply():
            return answer
        case HttpReply():
            raise TritonschedError("an HTTP answer for a gRPC call")


def error_reply(error: Exception) -> GrpcReply:
    """An error as a status with its reason."""
    code, details, trailers = grpc_status(error)
    return GrpcReply(code.name, details, b"", (), trailers)


def trailers_of(reply: GrpcReply) -> Metadata:
    """Trailing metadata to send: Triton's, and the explanation if one was asked for."""
    if reply.explain is None:
        return reply.trailing_metadata
    return (*reply.trailing_metadata, (EXPLAIN, reply.explain.header_value()))
