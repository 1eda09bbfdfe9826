"""A gRPC stream whose client, scheduler and Triton are played by a test, on virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tests.virtual_loop import VirtualLoop
from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.errors import DeadlineUnreachable, TritonUnavailable
from tritonsched.frontend.grpc_stream import Streams
from tritonsched.frontend.stream_order import asking
from tritonsched.tensors import Answer, Cancel, Done, GrpcReply, InferCall, Send

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
NO = DeadlineUnreachable("too late")


def message(name: str) -> bytes:
    made: bytes = pb.ModelInferRequest(model_name="m", id=name).SerializeToString()
    return made


def sent(name: str) -> bytes:
    """The message as Triton gets it."""
    return asking(message(name))[0]


def answer(name: str, error: str = "") -> bytes:
    made = pb.ModelStreamInferResponse(error_message=error)
    made.infer_response.id = name
    data: bytes = made.SerializeToString()
    return data


class Triton:
    """The upstream and its one stream. seen: what was written; say: what is read, in order."""

    address = "triton"

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.half_closed = False
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = 0
        self.early: Metadata = ()
        self.taking = asyncio.Event()
        self.taking.set()

    def stream(self, _method: str, messages: AsyncIterator[bytes], _metadata: Metadata) -> Any:
        self._writing = asyncio.ensure_future(self._write(messages))
        return self

    async def _write(self, messages: AsyncIterator[bytes]) -> None:
        async for made in messages:
            await self.taking.wait()
            self.seen.append(made)
        self.half_closed = True

    def say(self, *replies: Any) -> None:
        for reply in replies:
            self.replies.put_nowait(reply)

    async def initial_metadata(self) -> Metadata:
        return self.early

    async def trailing_metadata(self) -> Metadata:
        return (("late", "1"),)

    async def read(self) -> Any:
        reply = await self.replies.get()
        self.reads += 1
        if isinstance(reply, Exception):
            raise reply
        return reply

    def error_reply(self, error: grpc.aio.AioRpcError) -> GrpcReply:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise TritonUnavailable("away")
        return GrpcReply(error.code().name, error.details() or "", b"")


def broken(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, none, none, "its words", None)


class Client:
    """It sends what it is told to, and reads while `reading` is set."""

    def __init__(self) -> None:
        self.sending: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.heard: list[bytes] = []
        self.begun: list[Metadata] = []
        self.reading = asyncio.Event()
        self.reading.set()

    def say(self, *names: str) -> None:
        for name in names:
            self.sending.put_nowait(message(name))

    async def messages(self) -> AsyncIterator[bytes]:
        try:
            while (made := await self.sending.get()) is not None:
                yield made
        except asyncio.CancelledError:  # as a server's does
            return

    async def begin(self, metadata: Metadata) -> None:
        self.begun.append(metadata)

    async def send(self, made: bytes) -> None:
        await self.reading.wait()
        self.heard.append(made)


class Turns:
    """A service whose turns the test gives. ends: how each message's hold of a device ended."""

    is_ready = True

    def __init__(self) -> None:
        self.decoupled = False
        self.waiting: dict[str, tuple[Done, Send]] = {}
        self.left: list[str] = []
        self.ends: dict[str, str] = {}
        self.close: Callable[[], None] | None = None
        self.at_once = False
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, call: InferCall, done: Done, send: Send | None = None) -> Cancel:
        assert send is not None
        assert call.lone_reason
        self.waiting[call.id] = (done, send)
        if self.at_once:
            self.give(call.id)
        return lambda: self.left.append(call.id)

    def is_decoupled(self, _call: InferCall) -> bool:
        return self.decoupled

    def give(self, name: str, expected_ns: int = 0) -> None:
        done, send = self.waiting.pop(name)
        task = asyncio.ensure_future(self._run(name, done, send, expected_ns))
        self._running.add(task)

    async def _run(self, name: str, done: Done, send: Send, expected_ns: int) -> None:
        reply = await send(expected_ns)
        assert isinstance(reply, GrpcReply)
        self.ends[name] = reply.code
        done(reply)

    def refuse(self, name: str) -> None:
        self.waiting.pop(name)[0](NO)

    def open_stream(self, close: Callable[[], None]) -> Callable[[], None]:
        self.close = close

        def closed() -> None:
            self.close = None

        return closed

    async def infer(self, call: InferCall) -> Answer:
        raise AssertionError(call)

    async def invalidate(self, model: str) -> None:
        raise AssertionError(model)


class Stage:
    """A stream that has begun."""

    def __init__(self, loop: VirtualLoop, metadata: Metadata = (), **early: Any) -> None:
        self.loop = loop
        self.client, self.turns, self.triton = Client(), Turns(), Triton()
        self.triton.early = early.get("early", ())
        self.streams = Streams(self.turns, self.triton)  # type: ignore[arg-type]  # the stream alone
        self.ended = asyncio.ensure_future(self.streams.relay(self.client, metadata))

    async def settle(self) -> None:
        await self.loop.pause(1)

    async def end(self) -> GrpcReply:
        self.client.sending.put_nowait(None)
        self.triton.say(EOF)
        return await self.ended
