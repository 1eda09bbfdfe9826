"""The other ends of the wires, for tests on loopback: a raw HTTP server, and a gRPC Triton."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import grpc.aio

HOST = "127.0.0.1"


@dataclass(slots=True)
class RawHttp:
    """A server whose answers are bytes written by hand. seen: the requests, byte for byte.

    answer: gets each request and the writer; None closes without an answer.
    """

    answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
    seen: list[bytes] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _request(reader)
                self.seen.append(request)
                await self.answer(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost.set()
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.partition(b":")[2]))
    return head


@contextlib.asynccontextmanager
async def raw_http(
    answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[RawHttp]:
    """A RawHttp on a free port of loopback, for the time of the block."""
    made = RawHttp(answer)
    server = await asyncio.start_server(made._accept, HOST, 0)
    made.address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


def fixed(status: str, *headers: str, body: bytes = b"") -> Callable[..., Awaitable[None]]:
    """The same answer to every request."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    message = "\r\n".join(lines).encode() + body

    async def answer(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(message)

    return answer


@dataclass(slots=True)
class Call:
    """What a gRPC server saw of a call."""

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    messages: list[bytes] = field(default_factory=list)
    half_closed: bool = False
    cancelled: bool = False


class RawGrpc(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """A gRPC server of raw bytes. Methods ending in `StreamInfer` are streams.

    unary: the answer to a call; it may abort. stream: the answers, given the messages. stop: ends
    the server, whatever runs.
    """

    def __init__(
        self,
        unary: Callable[[Call, Any], Awaitable[bytes]],
        stream: Callable[[Call, AsyncIterator[bytes], Any], AsyncIterator[bytes]] | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.changed = asyncio.Condition()
        self._answer = unary
        self._answers = stream
        self.address = ""
        self.stop: Callable[[], Awaitable[None]]

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method.endswith("StreamInfer"):
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, method))

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until it is so; looked at whenever a call changes."""
        async with self.changed, asyncio.timeout(30):
            await self.changed.wait_for(is_so)

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _unary(self, method: str, message: bytes, context: Any) -> bytes:
        call = Call(method, tuple(context.invocation_metadata()), [message])
        self.calls.append(call)
        await self.tell()
        try:
            return await self._answer(call, context)
        except asyncio.CancelledError:
            call.cancelled = True
            raise

    async def _stream(
        self, method: str, messages: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        call = Call(method, tuple(context.invocation_metadata()))
        self.calls.append(call)

        async def noted() -> AsyncIterator[bytes]:
            async for message in messages:
                call.messages.append(message)
                await self.tell()
                yield message
            call.half_closed = True
            await self.tell()

        assert self._answers is not None
        try:
            async for answer in self._answers(call, noted(), context):
                yield answer
        except asyncio.CancelledError:
            call.cancelled = True
            raise


@contextlib.asynccontextmanager
async def serving(handler: RawGrpc, *, receive_bytes_max: int = 1 << 20) -> AsyncIterator[RawGrpc]:
    """The handler on a free port of loopback, for the time of the block."""
    options = (
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", receive_bytes_max),
        ("grpc.max_send_message_length", -1),
    )
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(f"{HOST}:0")
    handler.address = f"{HOST}:{port}"
    handler.stop = partial(server.stop, None)
    await server.start()
    try:
        yield handler
    finally:
        await server.stop(None)


async def unused_address() -> str:
    """Where nobody listens."""
    server = await asyncio.start_server(lambda *_: None, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"{HOST}:{port}"
