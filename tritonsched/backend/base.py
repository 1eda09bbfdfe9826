"""What the driver needs of a backend. Rule: five methods; everything Triton-specific is behind
them. And what a backend needs of gRPC, for which there are two implementations.

Implementations: `triton.TritonBackend` (real), `scripted.ScriptedBackend` (the fake that ships);
one contract test runs on both.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import grpc.aio

from tritonsched.backend.batch_call import BatchCall, BatchDone
from tritonsched.backend.catalogue import ModelInfo
from tritonsched.tensors import Buffer, GrpcDone, GrpcReply, InferCall, RawReply


class Backend(Protocol):
    """A server of models.

    Never cancelled and never given a deadline: Triton 2.51 can crash on either (server issues 7368,
    8034). A coroutine is kept alive by its caller until it returns.
    """

    def send(self, call: BatchCall, done: BatchDone) -> None:
        """Send a merged batch before this returns; `done` hears how it ended, in a later loop turn.

        Errors: BackendError (Triton failed it), MalformedAnswer, TritonUnavailable (it may or may
        not have been executed).
        """

    async def forward(self, call: InferCall) -> RawReply:
        """Send one call's original bytes over its own protocol and return the answer as it came.

        Raises TritonUnavailable; an error that Triton answers is an answer.
        """

    async def model_info(self, model: str, version: str) -> ModelInfo | None:
        """What Triton says of the model; None if it does not serve it. Raises TritonUnavailable."""

    async def ready(self) -> bool:
        """Triton is up; single models may be loading or broken. Never raises."""

    async def close(self) -> None:
        """Give everything back: connections, regions, registrations."""


class Homed:
    """The messages of one stream. home: the server that they go to; empty while any will do."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self._messages = messages
        self.home = ""

    def __aiter__(self) -> "Homed":
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._messages)


class GrpcCalls(Protocol):
    """Triton's gRPC port, bytes both ways: `upstream_h2.H2Upstream`, `upstream_grpc.GrpcUpstream`;
    or several of them, `fleet_grpc.FleetGrpc`.

    A call is never cancelled and never given a deadline; metadata: end-to-end pairs, in order.
    """

    address: str

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Let running calls finish within a bound, then close."""

    def send(self, method: str, message: Buffer, done: GrpcDone) -> None:
        """One call; `done` hears the reply (an error status is one), or that nobody answered."""

    async def unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> GrpcReply:
        """One call; an error status is a reply. Raises TritonUnavailable."""

    def stream(
        self,
        method: str,
        messages: AsyncIterator[bytes],
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> Any:  # grpc.aio.StreamStreamCall[bytes, bytes]; the stubs do not export it
        """A bidirectional stream of raw messages; iterate it for the answers."""

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """A stream's status that Triton sent. Raises TritonUnavailable if the channel made it."""
