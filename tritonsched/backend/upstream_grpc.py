"""Triton's gRPC port: bytes there, bytes back, over one channel. Rule: no deadline, no cancel.

Triton 2.51 can crash when an in-flight call is cancelled or its deadline passes (server issues
7368, 8034), so a unary call, once sent, is finished whatever becomes of its caller.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio

from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, GrpcDone, GrpcReply

FINISH_S = 10.0  # for running calls when we close; a Triton that hangs does not hold us for ever
SERVICE = "/inference.GRPCInferenceService/"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # the time an attempt has; no wait before the next
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_RESERVED = ("grpc-", ":")
_CONNECTION_WORDS = (
    "failed to connect",
    "connection refused",
    "connection reset",
    "socket closed",
    "transport closed",
    "stream removed",
    "broken pipe",
    "goaway",
    "endpoint closing",
    "no address",
    "recvmsg",
    "write failed",
    "channel is closed",
    "connection dropped",
    "connection aborted",
    "name resolution",
    "dns resolution",
    "errors resolving",
    "keepalive watchdog",
    "cancelling all calls",
    "connection attempt timed out",
)
"""How grpc's core words the faults of a connection. A status that Triton itself sent never has
them.
"""

Metadata = tuple[tuple[str, str | bytes], ...]


def end_to_end(metadata: Iterable[Any] | None) -> Metadata:
    """Metadata that goes on to the other side, in order; what gRPC itself makes is left out."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if not key.startswith(_RESERVED) and key not in ("user-agent", "content-type", "te")
    )


class GrpcUpstream:
    """One channel to Triton. address: host:port."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}  # grpc.aio's multi-callables have no common type
        self._running: set[asyncio.Task[GrpcReply]] = set()
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the channel; it connects at the first call and again by itself."""
        self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)

    async def close(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=FINISH_S)
        if self._channel is not None:
            await self._channel.close(None)

    def send(self, method: str, message: Buffer, done: GrpcDone, metadata: Metadata = ()) -> None:
        """One call; `done` hears the reply (an error status is one), or that nobody answered."""

        async def told() -> None:
            try:
                outcome: GrpcReply | TritonUnavailable = await self.unary(method, message, metadata)
            except TritonUnavailable as error:
                outcome = error
            done(outcome)

        task = asyncio.get_running_loop().create_task(told())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> GrpcReply:
        """One call; an error status is a reply. Raises TritonUnavailable if the connection
        failed.
        """
        task = asyncio.ensure_future(self._unary(method, message, metadata))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def stream(
        self,
        method: str,
        messages: AsyncIterator[bytes],
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> Any:  # grpc.aio.StreamStreamCall[bytes, bytes]; the stubs do not export it
        """A bidirectional stream of raw messages; iterate it for the answers."""
        assert self._channel is not None, "call start() first"
        call = self._channel.stream_stream(
            method, request_serializer=None, response_deserializer=None
        )
        return call(messages, metadata=end_to_end(metadata))

    async def _unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]]
    ) -> GrpcReply:
        assert self._channel is not None, "call start() first"
        callable_ = self._methods.get(method)
        if callable_ is None:
            callable_ = self._methods[method] = self._channel.unary_unary(
                method, request_serializer=None, response_deserializer=None
            )
        call = callable_(bytes(message), metadata=end_to_end(metadata))
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            return self.error_reply(error)
        return GrpcReply(
            "OK",
            "",
            answer,
            end_to_end(await call.initial_metadata()),
            end_to_end(await call.trailing_metadata()),
        )

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """A status that Triton sent. Raises TritonUnavailable if the channel made it."""
        details = error.details() or ""
        if is_connection_fault(error.code(), details):
            text = f"Triton's gRPC port {self.address} does not answer"
            raise TritonUnavailable(text, retry_after_ns=1_000_000_000) from error
        return GrpcReply(
            error.code().name,
            details,
            b"",
            end_to_end(tuple(error.initial_metadata())),
            end_to_end(tuple(error.trailing_metadata())),
        )


def is_connection_fault(code: grpc.StatusCode, details: str) -> bool:
    """Whether the channel made this status itself: nobody answered.

    Triton uses UNAVAILABLE too (a full queue, a model that is loading), so the words decide.
    """
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return False
    text = details.lower()
    return any(word in text for word in _CONNECTION_WORDS)
