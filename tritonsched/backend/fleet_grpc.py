"""Several Tritons' gRPC ports as one `GrpcCalls`. Rule: which call goes to which server stands in
one table; Triton's own answers are handed on, joined where all are asked.

| method                                        | goes to                                         |
|-----------------------------------------------|-------------------------------------------------|
| live, ready, health, metadata, config, status | the first that is up and says yes               |
| statistics, index                             | all; counts are added, lists united             |
| load, unload, settings, unregister            | all; the first error, with the server's name    |
| register                                      | all or none, and again whoever comes up later   |
| ModelStreamInfer                              | the server of its first message                 |
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from tritonsched.backend import sums
from tritonsched.backend.base import GrpcCalls, Homed
from tritonsched.backend.fleet import Ports, none_up
from tritonsched.backend.upstream_grpc import SERVICE
from tritonsched.errors import TritonUnavailable
from tritonsched.tensors import Buffer, GrpcDone, GrpcReply

Metadata = tuple[tuple[str, str | bytes], ...]
_JOINED: Mapping[str, tuple[Any, Any]] = {
    f"{SERVICE}ModelStatistics": (pb.ModelStatisticsResponse, sums.add_statistics),
    f"{SERVICE}RepositoryIndex": (pb.RepositoryIndexResponse, sums.add_index),
}
_SYSTEM, _CUDA = f"{SERVICE}SystemSharedMemory", f"{SERVICE}CudaSharedMemory"
_REGISTER = {
    f"{_SYSTEM}Register": ("system", pb.SystemSharedMemoryRegisterRequest),
    f"{_CUDA}Register": ("cuda", pb.CudaSharedMemoryRegisterRequest),
}
_UNREGISTER = {
    f"{_SYSTEM}Unregister": ("system", pb.SystemSharedMemoryUnregisterRequest),
    f"{_CUDA}Unregister": ("cuda", pb.CudaSharedMemoryUnregisterRequest),
}
_TO_ALL = frozenset(
    {*_UNREGISTER}
    | {
        f"{SERVICE}{name}"
        for name in (
            "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
        )
    }
)  # fmt: skip
_OK = "OK"


class FleetGrpc(Ports[GrpcCalls]):
    """All gRPC ports as one."""

    def send(self, method: str, message: Buffer, done: GrpcDone) -> None:
        """One call to any server."""
        self._upstreams[self._members.chosen("")].send(method, message, done)

    async def unary(
        self, method: str, message: Buffer, metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> GrpcReply:
        """As the table has it. Raises TritonUnavailable if no server answers."""
        kept = tuple(metadata)
        if method in _JOINED:
            return await self._joined(method, message, kept)
        if method in _REGISTER:
            return await self._register(method, message, kept)
        if method in _TO_ALL:
            if method in _UNREGISTER:
                kind, request = _UNREGISTER[method]
                self._registrations.drop(kind, _name(request, message))
            return _first_error(await self._all(method, message, kept))
        return await self._any(method, message, kept)

    def stream(
        self,
        method: str,
        messages: AsyncIterator[bytes],
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> "FleetStream":
        """A stream that opens at its home with its first message."""
        return FleetStream(self._open, method, messages, tuple(metadata))

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        """A stream's status. Raises TritonUnavailable if the channel made it."""
        return next(iter(self._upstreams.values())).error_reply(error)

    def _open(
        self, method: str, home: str, messages: AsyncIterator[bytes], metadata: Metadata
    ) -> tuple[str, Any]:
        name = self._members.chosen(home)
        return name, self._upstreams[name].stream(method, messages, metadata)

    # -- who is asked ---------------------------------------------------------------------------

    async def _any(self, method: str, message: Buffer, metadata: Metadata) -> GrpcReply:
        """The first answer that says yes (to a question of yes or no, no is an empty message)."""
        first: GrpcReply | None = None
        for name in self._members:
            try:
                reply = await self._upstreams[name].unary(method, message, metadata)
            except TritonUnavailable:
                continue
            if reply.code == _OK and reply.message:
                return reply
            if first is None or (first.code != _OK and reply.code == _OK):
                first = reply
        if first is None:
            raise none_up()
        return first

    async def _all(self, method: str, message: Buffer, metadata: Metadata) -> dict[str, GrpcReply]:
        """What each answers. Raises TritonUnavailable if none does."""
        return await self._members.ask_all(
            lambda name: self._upstreams[name].unary(method, message, metadata)
        )

    async def _joined(self, method: str, message: Buffer, metadata: Metadata) -> GrpcReply:
        """Of those that know; an error only if it is everybody's."""
        replies = (await self._all(method, message, metadata)).values()
        good = [reply for reply in replies if reply.code == _OK]
        if len(good) < 2:  # nothing to join
            return next(iter(good or replies))
        kind, add = _JOINED[method]
        try:
            made = kind.FromString(bytes(good[0].message))
            for reply in good[1:]:
                add(made, kind.FromString(bytes(reply.message)))
        except DecodeError:
            return good[0]  # the client's to judge
        return replace(good[0], message=made.SerializeToString())

    # -- shared memory --------------------------------------------------------------------------

    async def _register(self, method: str, message: Buffer, metadata: Metadata) -> GrpcReply:
        """On all or on none: a request that uses the region may go anywhere."""
        replies = await self._all(method, message, metadata)
        failed = [name for name, reply in replies.items() if reply.code != _OK]
        kind, request = _REGISTER[method]
        region = _name(request, message)
        if failed and region:
            undo = method.replace("Register", "Unregister")
            back = _UNREGISTER[undo][1](name=region).SerializeToString()
            for name in replies.keys() - failed:
                await self._upstreams[name].unary(undo, back, metadata)
        elif region:

            def replay(server: str) -> Awaitable[GrpcReply]:
                return self._upstreams[server].unary(method, message)

            self._registrations.keep(kind, region, replay)
        return _first_error(replies)


def _first_error(replies: Mapping[str, GrpcReply]) -> GrpcReply:
    """The first answer that is one, with its server's name; else the first answer."""
    for name, reply in replies.items():
        if reply.code != _OK:
            return replace(reply, details=f"server '{name}': {reply.details}")
    return next(iter(replies.values()))


def _name(kind: Any, message: Buffer) -> str:
    try:
        return str(kind.FromString(bytes(message)).name)
    except DecodeError:
        return ""


class FleetStream:
    """A call that begins when its first message says where; a `StreamStreamCall` to its reader."""

    def __init__(
        self, begin: Any, method: str, messages: AsyncIterator[bytes], metadata: Metadata
    ) -> None:
        self._begin = begin
        self._method = method
        self._messages = messages
        self._metadata = metadata
        self._opening: asyncio.Task[Any] | None = None

    async def initial_metadata(self) -> Any:
        return await (await self._opened()).initial_metadata()

    async def read(self) -> Any:
        return await (await self._opened()).read()

    async def trailing_metadata(self) -> Any:
        return await (await self._opened()).trailing_metadata()

    async def _opened(self) -> Any:
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Any:
        first = await anext(self._messages, None)
        home = self._messages.home if isinstance(self._messages, Homed) else ""
        name, call = self._begin(self._method, home, self._all(first), self._metadata)
        if isinstance(self._messages, Homed):
            self._messages.home = name
        return call

    async def _all(self, first: bytes | None) -> AsyncIterator[bytes]:
        if first is None:
            return
        yield first
        async for message in self._messages:
            yield message
