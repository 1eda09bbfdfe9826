"""One gRPC stream, message by message, on virtual time: client, scheduler and Triton are played by
the test. Real ones: test_grpc_server.py and the integration tests.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tests.helpers import MS
from tests.unit.proxy.scene import virtual
from tests.virtual_loop import VirtualLoop
from tritonsched.backend.upstream_grpc import Metadata
from tritonsched.errors import DeadlineUnreachable, TritonUnavailable
from tritonsched.frontend import grpc_stream
from tritonsched.frontend.grpc_stream import READ_MAX, Streams
from tritonsched.proxy.streaming import HOLD_NS_UNPROVEN
from tritonsched.tensors import Answer, Cancel, Done, GrpcReply, InferCall, Send

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # not in the stubs
NO = DeadlineUnreachable("too late")


def message(name: str) -> bytes:
    made: bytes = pb.ModelInferRequest(model_name="m", id=name).SerializeToString()
    return made


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


@virtual
async def test_a_message_waits_for_its_turn_and_the_next_for_it(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.say("a", "b")
    await stage.settle()
    assert (list(stage.turns.waiting), stage.triton.seen) == (["a"], [])
    stage.turns.give("a")
    await stage.settle()
    assert (list(stage.turns.waiting), stage.triton.seen) == (["b"], [message("a")])
    stage.turns.give("b")
    stage.triton.say(answer("a"), answer("b"))
    assert (await stage.end()).code == "OK"
    assert stage.client.heard == [answer("a"), answer("b")]
    assert stage.turns.ends == {"a": "OK", "b": "OK"}
    assert stage.triton.half_closed
    assert stage.turns.close is None


@virtual
async def test_first_metadata_come_first_and_last_metadata_last(loop: VirtualLoop) -> None:
    stage = Stage(loop, early=(("early", "1"),))
    await stage.settle()
    assert stage.client.begun == [(("early", "1"),)]
    assert (await stage.end()).trailing_metadata == (("late", "1"),)


@virtual
async def test_a_device_is_held_until_the_first_answer_and_not_longer(loop: VirtualLoop) -> None:
    """A decoupled model goes on alone, and an answer to nobody frees nobody."""
    stage = Stage(loop)
    stage.turns.at_once = True
    stage.client.say("a", "b")
    stage.triton.say(answer("stranger"), b"\xff")
    await stage.settle()
    assert stage.turns.ends == {}
    stage.triton.say(answer("b"), answer("b"), answer("b"))
    await stage.settle()
    assert stage.turns.ends == {"b": "OK"}
    stage.triton.say(answer("a", error="bad"))
    await stage.settle()
    assert stage.turns.ends == {"b": "OK", "a": "INTERNAL"}
    await stage.end()


@virtual
async def test_a_model_that_never_answers_does_not_hold_its_device_for_ever(
    loop: VirtualLoop,
) -> None:
    stage = Stage(loop)
    stage.client.say("a")
    await stage.settle()
    stage.turns.give("a")
    await loop.pause(HOLD_NS_UNPROVEN + 1)
    assert stage.turns.ends == {"a": "OK"}
    await stage.end()


@virtual
async def test_a_client_that_does_not_read_is_waited_for_but_frees_the_device(
    loop: VirtualLoop,
) -> None:
    """READ_MAX answers are read ahead, one is being written; its time teaches nothing."""
    stage = Stage(loop)
    stage.client.reading.clear()
    stage.client.say("a")
    await stage.settle()
    stage.triton.say(*[answer(f"x{n}") for n in range(9)])
    stage.turns.give("a", 10 * MS)
    await loop.pause(50 * MS)
    assert stage.triton.reads == READ_MAX + 1
    assert stage.turns.ends == {"a": "INTERNAL"}
    stage.client.reading.set()
    await stage.end()
    assert len(stage.client.heard) == 9


@virtual
async def test_a_triton_that_does_not_take_a_message_is_waited_for(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.triton.taking.clear()
    stage.turns.at_once = True
    stage.client.say("a", "b", "c")
    await stage.settle()
    assert stage.client.sending.qsize() == 2
    stage.triton.taking.set()
    await stage.settle()
    assert stage.triton.seen == [message(name) for name in "abc"]
    await stage.end()


@virtual
async def test_a_refusal_is_said_in_the_stream_after_what_came_before_it(
    loop: VirtualLoop,
) -> None:
    stage = Stage(loop)
    stage.client.say("a", "b", "c")
    await stage.settle()
    stage.turns.give("a")
    await stage.settle()
    stage.turns.refuse("b")
    await stage.settle()
    stage.turns.give("c")
    await stage.settle()
    assert stage.client.heard == []
    stage.triton.say(answer("a"), answer("c"))
    await stage.end()
    assert stage.client.heard == [answer("a"), answer("b", error=str(NO)), answer("c")]


@virtual
async def test_a_refusal_behind_one_that_is_never_answered_is_said_at_the_end(
    loop: VirtualLoop,
) -> None:
    stage = Stage(loop)
    stage.client.say("a", "b")
    await stage.settle()
    stage.turns.give("a")
    await stage.settle()
    stage.turns.refuse("b")
    await stage.end()
    assert stage.client.heard == [answer("b", error=str(NO))]
    await stage.settle()
    assert stage.turns.ends == {"a": "INTERNAL"}


@virtual
async def test_a_client_that_asked_for_statuses_gets_a_refusal_as_one(loop: VirtualLoop) -> None:
    stage = Stage(loop, (("triton_grpc_error", "true"),))
    stage.client.say("a")
    await stage.settle()
    stage.turns.refuse("a")
    reply = await stage.ended
    assert (reply.code, reply.details) == ("DEADLINE_EXCEEDED", str(NO))
    await stage.settle()
    assert stage.triton.half_closed
    stage.triton.say(EOF)
    await stage.settle()


@virtual
async def test_bytes_that_are_no_message_go_to_triton_at_once(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.sending.put_nowait(b"\xff")
    await stage.settle()
    assert (stage.triton.seen, stage.turns.waiting) == ([b"\xff"], {})
    await stage.end()


@virtual
async def test_who_leaves_while_waiting_is_dropped_and_half_closes(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.say("a")
    await stage.settle()
    stage.ended.cancel()
    await stage.settle()
    assert stage.turns.left == ["a"]
    assert (stage.triton.seen, stage.triton.half_closed) == ([], True)
    stage.turns.give("a")  # its turn came at the very moment
    await stage.settle()
    assert (stage.triton.seen, stage.turns.ends) == ([], {"a": "INTERNAL"})
    stage.triton.say(EOF)
    await stage.settle()


@virtual
async def test_who_leaves_later_keeps_the_device_until_triton_has_answered(
    loop: VirtualLoop,
) -> None:
    """However many answers there are that nobody takes."""
    stage = Stage(loop)
    stage.turns.at_once = True
    stage.client.reading.clear()
    stage.client.say("a")
    await stage.settle()
    stage.ended.cancel()
    await stage.settle()
    assert stage.turns.ends == {}
    stage.triton.say(*[answer("x")] * 9, answer("a"), EOF)
    await stage.settle()
    assert stage.turns.ends == {"a": "OK"}
    assert stage.triton.reads == 11


@virtual
async def test_what_is_finished_for_nobody_is_given_up_within_a_bound(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.turns.at_once = True
    stage.client.say("a")
    await stage.settle()
    stage.ended.cancel()
    await loop.pause(int(grpc_stream.STREAM_DRAIN_S * 1e9) + 1)
    assert stage.turns.ends == {"a": "OK"}  # when its hold ended
    stage.triton.say(answer("late"))
    await stage.settle()
    assert stage.triton.reads == 0


@virtual
async def test_a_drain_ends_an_idle_stream_with_its_reason(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    await stage.settle()
    assert stage.turns.close is not None
    stage.turns.close()
    await stage.settle()
    assert stage.triton.half_closed
    stage.triton.say(EOF)
    reply = await stage.ended
    assert reply.code == "UNAVAILABLE"
    assert ("x-tritonsched-reason", "draining") in reply.trailing_metadata


@virtual
async def test_a_drain_serves_the_message_that_waits_and_no_other(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.say("a", "b")
    await stage.settle()
    assert stage.turns.close is not None
    stage.turns.close()
    stage.turns.give("a")
    await stage.settle()
    stage.triton.say(answer("a"), EOF)
    assert (await stage.ended).code == "UNAVAILABLE"
    assert stage.client.heard == [answer("a")]
    assert (stage.triton.seen, stage.triton.half_closed) == ([message("a")], True)


@virtual
async def test_a_stream_that_its_client_has_closed_ends_well_in_a_drain(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.sending.put_nowait(None)
    await stage.settle()
    assert stage.turns.close is not None
    stage.turns.close()
    stage.triton.say(EOF)
    assert (await stage.ended).code == "OK"


@virtual
async def test_tritons_status_ends_the_stream_and_frees_what_it_held(loop: VirtualLoop) -> None:
    """What waited to be written is not waited for any more."""
    stage = Stage(loop)
    stage.triton.taking.clear()
    stage.client.say("a")
    await stage.settle()
    stage.turns.give("a")
    await stage.settle()
    stage.triton.say(broken(grpc.StatusCode.INTERNAL))
    reply = await stage.ended
    assert (reply.code, reply.details) == ("INTERNAL", "its words")
    stage.triton.taking.set()
    await stage.settle()
    assert stage.turns.ends == {"a": "INTERNAL"}


@virtual
async def test_a_triton_that_went_away_is_told_as_such(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.triton.say(broken(grpc.StatusCode.UNAVAILABLE))
    reply = await stage.ended
    assert ("x-tritonsched-reason", "triton-unavailable") in reply.trailing_metadata


@virtual
async def test_closing_gives_up_at_once_what_is_finished_for_nobody(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    await stage.settle()
    stage.ended.cancel()
    await stage.settle()
    stage.streams.close()
    await stage.settle()
    stage.triton.say(answer("late"))
    await stage.settle()
    assert stage.triton.reads == 0
