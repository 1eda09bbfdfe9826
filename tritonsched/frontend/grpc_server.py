"""Triton's gRPC port on grpc.aio. Rule: raw bytes both ways; a proxy's older proto must not drop a
field.

What a method does is in `grpc_methods` and `grpc_stream`; here is only how grpc.aio is spoken. A
client's cancel or deadline cancels the handler, and with it what is queued; it never reaches
Triton.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tritonsched.backend.base import GrpcCalls
from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.errors import StartupError
from tritonsched.frontend.grpc_methods import (
    STREAM,
    UNARY,
    GrpcMethods,
    error_reply,
    remaining_ns,
    trailers_of,
)
from tritonsched.frontend.grpc_stream import Streams
from tritonsched.frontend.service import InferService
from tritonsched.tensors import GrpcReply

STOP_GRACE_S = 5.0  # for answers that are being written when the queue is empty
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
        upstream: GrpcCalls,
        *,
        host: str,
        port: int,
        request_bytes_max: int,
        connections_max: int = 16_384,
        tls: grpc.ServerCredentials | None = None,
    ) -> None:
        self._tls = tls
        self._methods = GrpcMethods(service, upstream)
        self._streams = Streams(service, upstream)
        self._host = host
        self._wanted_port = port
        self.port = 0
        options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", request_bytes_max),
            ("grpc.max_allowed_incoming_connections", connections_max),
        )
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((_Handlers(self._handler),))

    async def start(self) -> None:
        """Listen. Raises StartupError if the port is taken."""
        address = f"{self._host}:{self._wanted_port}"
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._tls)
        except RuntimeError as error:
            raise StartupError(
                f"gRPC port {address}: cannot be bound (in use?); choose another with --grpc-port"
            ) from error
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening, let handlers finish within the grace, then close."""
        await self._server.stop(STOP_GRACE_S)
        self._streams.close()

    def _handler(self, method: str) -> Any:
        """The handler of a method; None (UNIMPLEMENTED) for one that Triton does not have
        either.
        """
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        if method in UNARY:
            return grpc.unary_unary_rpc_method_handler(self._unary(method))
        return None

    def _unary(self, method: str) -> Behaviour:
        async def unary(message: bytes, context: Context) -> bytes:
            left_ns = remaining_ns(context.time_remaining())
            metadata = context.invocation_metadata()
            reply = await self._methods.unary(method, message, metadata, remaining_ns=left_ns)
            if reply.code == "OK" and reply.initial_metadata:
                await context.send_initial_metadata(reply.initial_metadata)
            await _end(reply, context)
            return reply.message if isinstance(reply.message, bytes) else bytes(reply.message)

        return unary

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> None:
        client = _Client(messages, context)
        try:
            reply = await self._streams.relay(client, context.invocation_metadata())
        except Exception as error:  # the boundary: whatever it is becomes a status
            reply = error_reply(error)
        await _end(reply, context)


class _Client:
    """A `StreamClient` on grpc.aio."""

    def __init__(self, messages: AsyncIterator[bytes], context: Context) -> None:
        self._messages = messages
        self._context = context

    async def messages(self) -> AsyncIterator[bytes]:
        """A client that leaves ends them like one that half-closes."""
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.BaseError):
            async for message in self._messages:
                yield message

    async def begin(self, metadata: Metadata) -> None:
        await self._context.send_initial_metadata(metadata)

    async def send(self, message: bytes) -> None:
        await self._context.write(message)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Looks handlers up by method and remembers them."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make
        self._made: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        handler = self._made.get(method) or self._make(method)
        if handler is not None:  # unknown names are not remembered: they are anybody's to invent
            self._made[method] = handler
        return handler or _UNKNOWN


async def _unknown(_messages: AsyncIterator[bytes], context: Context) -> None:
    """UNIMPLEMENTED without a word, as Triton says it; grpcio would add its own."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


_UNKNOWN = grpc.stream_stream_rpc_method_handler(_unknown)


async def _end(reply: GrpcReply, context: Context) -> None:
    """Pass status and trailing metadata on."""
    trailers = trailers_of(reply)
    if reply.code != "OK":
        await context.abort(grpc.StatusCode[reply.code], reply.details, trailers)
    if trailers:
        context.set_trailing_metadata(trailers)
