"""Triton's gRPC port on grpc.aio. Rule: raw bytes both ways; a proxy's older proto must not drop a
field.

`ModelInfer` is ours; all other methods of the service are forwarded as bytes. A client's cancel or
deadline cancels the handler, and with it what is queued; it never reaches Triton.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend.upstream_grpc import SERVICE, GrpcUpstream, Metadata, end_to_end
from tritonsched.errors import StartupError, TritonschedError, TritonUnavailable
from tritonsched.frontend.grpc_codec import decode, encode
from tritonsched.frontend.service import InferService
from tritonsched.frontend.status import EXPLAIN, grpc_status
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, MergedReply

STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty
STREAM_DRAIN_S = 30.0  # for Triton to finish a stream whose client has left
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_NOT_SERVING = b"\x08\x02"  # HealthCheckResponse(status=NOT_SERVING)
_FORWARDED = frozenset(
    f"{SERVICE}{name}"
    for name in (
        "ServerLive", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig",
        "ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
    )
)  # fmt: skip
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)

Context = Any  # grpc.aio.ServicerContext[bytes, bytes]; generic in the stubs only
Behaviour = Callable[[bytes, Context], Awaitable[bytes]]


class GrpcServer:
    """Serves `service` and forwards the rest to `upstream`.

    request_bytes_max: a larger message is refused with RESOURCE_EXHAUSTED by gRPC itself.
    """

    def __init__(
        self,
        service: InferService,
        upstream: GrpcUpstream,
        *,
        host: str,
        port: int,
        request_bytes_max: int,
    ) -> None:
        self._service = service
        self._upstream = upstream
        self._host = host
        self._wanted_port = port
        self.port = 0
        options = (*_OPTIONS, ("grpc.max_receive_message_length", request_bytes_max))
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((_Methods(self._handler),))
        self._drains: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        address = f"{self._host}:{self._wanted_port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(
                f"gRPC port {address}: cannot be bound (in use?); choose another with --grpc-port"
            ) from error
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening, let handlers finish within the grace, then close."""
        await self._server.stop(STOP_GRACE_S)
        for task in self._drains:
            task.cancel()

    def _handler(self, method: str) -> Any:
        """The handler of a method; None (UNIMPLEMENTED) for one that Triton does not have
        either.
        """
        if method == f"{SERVICE}ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        behaviours: dict[str, Behaviour] = {
            f"{SERVICE}ModelInfer": self._infer,
            f"{SERVICE}ServerReady": self._ready,
            _HEALTH_CHECK: self._health,
            f"{SERVICE}RepositoryModelLoad": self._reload(method, pb.RepositoryModelLoadRequest),
            f"{SERVICE}RepositoryModelUnload": self._reload(
                method, pb.RepositoryModelUnloadRequest
            ),
        }
        behaviour = behaviours.get(method)
        if behaviour is None and method in _FORWARDED:
            behaviour = self._forward(method)
        return behaviour and grpc.unary_unary_rpc_method_handler(_guarded(behaviour))

    # -- methods ------------------------------------------------------------------------------

    async def _infer(self, message: bytes, context: Context) -> bytes:
        received_ns = time.monotonic_ns()
        left_s = context.time_remaining()
        call = decode(
            message,
            end_to_end(context.invocation_metadata()),
            received_ns=received_ns,
            remaining_ns=None if left_s is None else int(min(left_s, 1e9) * 1e9),
        )
        return await _send(as_grpc(await self._service.infer(call), call), context)

    def _forward(self, method: str) -> Behaviour:
        async def forward(message: bytes, context: Context) -> bytes:
            return await _send(await self._unary(method, message, context), context)

        return forward

    async def _unary(self, method: str, message: bytes, context: Context) -> GrpcReply:
        metadata = end_to_end(context.invocation_metadata())
        return await self._upstream.unary(method, message, metadata)

    async def _ready(self, message: bytes, context: Context) -> bytes:
        reply = await _send(await self._unary(f"{SERVICE}ServerReady", message, context), context)
        return reply if self._service.is_ready else b""  # ServerReadyResponse(ready=False)

    async def _health(self, message: bytes, context: Context) -> bytes:
        reply = await _send(await self._unary(_HEALTH_CHECK, message, context), context)
        return reply if self._service.is_ready else _NOT_SERVING

    def _reload(self, method: str, kind: Any) -> Behaviour:
        async def reload(message: bytes, context: Context) -> bytes:
            with contextlib.suppress(Exception):  # an undecodable one is Triton's to refuse
                await self._service.invalidate(kind.FromString(message).model_name)
            try:
                reply = await self._unary(method, message, context)
            finally:
                await self._service.invalidate("")
            return await _send(reply, context)

        return reload

    async def _stream(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """ModelStreamInfer: both directions as they come; half-close is relayed.

        Each read is a task of its own: a read that is cancelled cancels the call, and a client that
        leaves cancels this.
        """
        metadata = end_to_end(context.invocation_metadata())
        call = self._upstream.stream(f"{SERVICE}ModelStreamInfer", _until_left(messages), metadata)
        reading: asyncio.Task[Any] = asyncio.ensure_future(call.read())
        try:
            while (message := await asyncio.shield(reading)) is not _EOF:
                yield message
                reading = asyncio.ensure_future(call.read())
            context.set_trailing_metadata(end_to_end(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            await context.abort(*self._stream_status(error))
        finally:
            if not call.done():
                task = asyncio.ensure_future(_drain(call, reading))
                self._drains.add(task)
                task.add_done_callback(self._drains.discard)

    def _stream_status(self, error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, Metadata]:
        """The status of a stream that failed: Triton's own, or ours if it went away."""
        try:
            reply = self._upstream.error_reply(error)
        except TritonUnavailable as away:
            return grpc_status(away)
        return error.code(), reply.details, reply.trailing_metadata


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Looks handlers up by method and remembers them."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make
        self._made: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        handler = self._made.get(method) or self._make(method)
        if handler is not None:  # unknown names are not remembered: they are anybody's to invent
            self._made[method] = handler
        return handler


def _guarded(behaviour: Behaviour) -> Behaviour:
    """Whatever goes wrong becomes a status with its reason."""

    async def guarded(message: bytes, context: Context) -> bytes:
        try:
            return await behaviour(message, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the boundary: whatever it is becomes a status
            await context.abort(*grpc_status(error))
            raise AssertionError("abort does not return") from error

    return guarded


async def _send(reply: GrpcReply, context: Context) -> bytes:
    """Pass metadata and status on; returns the message of an OK reply."""
    trailers = reply.trailing_metadata
    if reply.explain is not None:
        trailers = (*trailers, (EXPLAIN, reply.explain.header_value()))
    if reply.code != "OK":
        await context.abort(grpc.StatusCode[reply.code], reply.details, trailers)
    if reply.initial_metadata:
        await context.send_initial_metadata(reply.initial_metadata)
    if trailers:
        context.set_trailing_metadata(trailers)
    return reply.message if isinstance(reply.message, bytes) else bytes(reply.message)


def as_grpc(answer: Answer, call: InferCall) -> GrpcReply:
    """Any answer as a gRPC one."""
    match answer:
        case MergedReply():
            return GrpcReply("OK", "", encode(answer, call), explain=answer.explain)
        case GrpcReply():
            return answer
        case HttpReply():
            raise TritonschedError("an HTTP answer for a gRPC call")


async def _until_left(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The client's messages; a client that leaves half-closes."""
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.BaseError):
        async for message in messages:
            yield message


async def _drain(call: Any, reading: asyncio.Task[Any]) -> None:
    """Let Triton finish within the bound: a cancelled stream can crash it."""
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(STREAM_DRAIN_S):
            while await reading is not _EOF:
                reading = asyncio.ensure_future(call.read())
