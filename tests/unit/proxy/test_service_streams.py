"""The door for what is never merged: sequences in order, streams in their turn, models that go."""

import asyncio
from dataclasses import replace

import pytest

from tests.helpers import MS
from tests.unit.proxy.calls import ECHO, call
from tests.unit.proxy.scene import data, ends, filled, virtual
from tests.unit.proxy.test_service import CANNED, Door
from tests.virtual_loop import VirtualLoop
from tritonsched.backend.scripted import hang, ok
from tritonsched.errors import Draining, TritonschedError
from tritonsched.tensors import Answer, GrpcReply

SEQUENCE = replace(ECHO, lone_reason="sequence", devices=("a", "b"))


class Sent:
    """A message of a stream. told: how it ended."""

    def __init__(self, door: Door, **fields: object) -> None:
        self.expected: list[int] = []
        self.told: list[Answer | TritonschedError] = []
        self.free = asyncio.Event()
        made = call(lone_reason="stream", **fields)
        made.received_ns = door.loop.now_ns()
        self.cancel = door.proxy.submit(made, self.told.append, self._send)

    async def _send(self, expected_ns: int) -> GrpcReply:
        self.expected.append(expected_ns)
        await self.free.wait()
        return CANNED


@pytest.mark.parametrize("is_known", [True, False])
def test_calls_of_a_sequence_go_one_by_one_though_two_devices_are_free(is_known: bool) -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = Door(loop, hang(), hang(), hang())
        door.backend.answers["echo"] = SEQUENCE
        if is_known:
            first = door.ask(call(id="0", parameters={"sequence_id": 1}))
            await door.settle()
            door.backend.resume()
            await first
        told: list[object] = []
        door.proxy.submit(call(id="a", parameters={"sequence_id": 7}), told.append)
        await door.settle()
        waiting = door.ask(call(id="b", parameters={"sequence_id": 7}))
        await door.settle()
        assert [made.id for made in door.backend.lone][-1:] == ["a"]
        door.backend.resume()
        await door.settle()
        await door.settle()
        assert [made.id for made in door.backend.lone][-2:] == ["a", "b"]
        door.backend.resume()
        assert (await waiting, told) == (CANNED, [CANNED])

    story()


@virtual
async def test_sequences_share_a_turn_but_for_their_starts(loop: VirtualLoop) -> None:
    """A start may have to wait in Triton for a slot."""
    door = Door(loop, *[hang() for _ in range(9)])
    door.backend.answers["echo"] = replace(SEQUENCE, idle_ns=60_000 * MS, devices=("a",))
    first = door.ask(call(parameters={"sequence_id": 1}))
    await door.settle()
    parameters = [{"sequence_id": 2, "sequence_start": True}, {"sequence_id": 3}]
    parameters += [{"sequence_id": 4, "sequence_end": True}, {"sequence_id": 3}]
    asked = [door.ask(call(parameters=each)) for each in parameters]
    await door.settle()
    turns = []
    for _ in range(5):
        (batch,) = door.scheduler.running()
        turns.append((len(batch.requests), batch.requests[0].alone, batch.requests[0].apart))
        door.backend.resume()
        await door.settle()
        await door.settle()
        if not door.scheduler.running():
            break
    assert sorted(turns) == [(1, False, True), (1, False, True), (1, True, False), (2, False, True)]
    await ends(first, *asked)


@pytest.mark.parametrize(("idle_ms", "patience_ms"), [(0, 1000), (400, 100), (60_000, 1000)])
def test_a_call_of_a_sequence_waits_no_longer_than_triton_keeps_its_sequence(
    idle_ms: int, patience_ms: int
) -> None:
    @virtual
    async def story(loop: VirtualLoop) -> None:
        door = Door(loop, hang())
        door.backend.answers["echo"] = replace(SEQUENCE, idle_ns=idle_ms * MS)
        asked = door.ask(call(parameters={"sequence_id": 7}))
        await door.settle()
        (batch,) = door.scheduler.running()
        (request,) = batch.requests
        assert request.due_ns - request.arrival_ns == patience_ms * MS
        door.backend.resume()
        await asked

    story()


@virtual
async def test_a_waiting_call_of_a_sequence_is_judged_by_the_model_of_its_turn(
    loop: VirtualLoop,
) -> None:
    door = Door(loop, hang())
    door.backend.answers["echo"] = SEQUENCE
    first = door.ask()
    await door.settle()
    second = door.ask()
    await door.settle()
    door.backend.answers["echo"] = ECHO
    await door.proxy.invalidate("echo")
    door.backend.resume()
    assert [type(answer).__name__ for answer in await ends(first, second)] == [
        "GrpcReply",
        "MergedReply",
    ]


@virtual
async def test_a_message_of_a_stream_is_sent_in_its_turn_and_told_when_it_is_over(
    loop: VirtualLoop,
) -> None:
    """It holds the device: who comes later waits, and is served when it is free."""
    door = Door(loop)
    await door.ask()
    sent = Sent(door)
    await door.settle()
    (expected_ns,) = sent.expected
    assert expected_ns > 0
    later = door.ask()
    await loop.pause(1)
    assert (sent.told, later.done()) == ([], False)
    sent.free.set()
    assert data(await later)
    assert sent.told == [CANNED]
    assert door.lone == [("echo", "stream")]


@virtual
async def test_a_message_for_a_model_that_is_not_known_yet_is_sent_when_it_is(
    loop: VirtualLoop,
) -> None:
    """Or at once, if Triton does not serve the model: it says so itself."""
    door = Door(loop)
    known, unknown = Sent(door), Sent(door, model="none")
    known.free.set()
    unknown.free.set()
    await loop.pause(MS)
    assert (known.told, unknown.told) == ([CANNED], [CANNED])
    assert unknown.expected == [0]


@virtual
async def test_a_message_that_waits_can_be_taken_back_and_one_that_was_sent_is_finished(
    loop: VirtualLoop,
) -> None:
    door = Door(loop)
    await door.ask()
    first, second = Sent(door), Sent(door)
    await door.settle()
    second.cancel()
    first.cancel()
    first.free.set()
    await loop.pause(MS)
    assert (len(first.expected), second.expected) == (1, [])
    assert (first.told, second.told) == ([], [])
    assert door.outcomes() == {"served": 1, "cancelled": 2}


@virtual
async def test_a_drain_waits_for_open_streams_and_tells_them(loop: VirtualLoop) -> None:
    door = Door(loop)
    told: list[str] = []
    closed = door.proxy.open_stream(lambda: told.append("close"))
    gone = door.proxy.open_stream(lambda: told.append("never"))
    gone()
    gone()
    door.proxy.drain()
    assert told == ["close"]
    drained = asyncio.ensure_future(door.proxy.drained())
    await door.settle()
    assert not drained.done()
    closed()
    await drained
    (refused,) = Sent(door).told
    assert isinstance(refused, Draining)


@virtual
async def test_what_was_judged_by_an_older_model_goes_alone(loop: VirtualLoop) -> None:
    """A load came between: what waits may not be merged by what the model was."""
    door = Door(loop, ok(), hang())
    await door.ask()
    blocker = door.ask()
    await door.settle()
    waiting = [door.ask(call(filled(number))) for number in range(3)]
    await door.settle()
    await door.proxy.invalidate("echo")
    door.backend.resume()
    await ends(blocker, *waiting)
    assert [made.rows for made in door.backend.batches] == [1, 1]
    assert len(door.backend.lone) == 3


@virtual
async def test_what_was_judged_by_an_equal_model_is_merged_all_the_same(loop: VirtualLoop) -> None:
    door = Door(loop, ok(), hang())
    await door.ask()
    blocker = door.ask()
    await door.settle()
    waiting = [door.ask(call(filled(number))) for number in range(3)]
    await door.settle()
    await door.proxy.invalidate("echo")
    waiting.append(door.ask(call(filled(9))))
    await door.settle()
    door.backend.resume()
    await ends(blocker, *waiting)
    assert door.backend.lone == []


@virtual
async def test_a_model_that_is_gone_is_forgotten_when_nothing_of_it_waits(
    loop: VirtualLoop,
) -> None:
    door = Door(loop, ok(), hang())
    await door.ask()
    assert door.proxy.knows("echo")
    blocker = door.ask()
    await door.settle()
    door.backend.answers["echo"] = None
    await door.proxy.invalidate("echo")
    assert not door.proxy.knows("echo")
    late = door.ask()
    await door.settle()
    assert "echo" in door.scheduler.queued()
    door.backend.resume()
    await ends(blocker, late)
    await door.ask()
    assert "echo" not in door.scheduler.queued()


@virtual
async def test_another_version_that_is_not_there_is_no_reason_to_forget_the_model(
    loop: VirtualLoop,
) -> None:
    door = Door(loop)
    await door.ask()
    door.backend.answers["echo"] = None
    await door.ask(call(version="9"))
    assert "echo" in door.scheduler.queued()
