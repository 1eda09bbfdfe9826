"""Order of sequences and the bound of a hold, on virtual time."""

import asyncio
from dataclasses import replace

import pytest

from tests.helpers import MS
from tests.unit.proxy.calls import ECHO, call
from tests.unit.proxy.scene import virtual
from tests.virtual_loop import VirtualLoop
from tritonsched.errors import QueueFull, TritonschedError
from tritonsched.proxy import streaming
from tritonsched.proxy.held import Held
from tritonsched.proxy.streaming import (
    HOLD_FACTOR,
    HOLD_NS_MIN,
    HOLD_NS_UNPROVEN,
    Sequences,
    hold,
    hold_ns,
    sequence_of,
)
from tritonsched.tensors import Answer, Cancel, Done, GrpcReply

OK = GrpcReply("OK", "", b"")
SEQUENCE = replace(ECHO, lone_reason="sequence")


def test_the_bound_of_a_hold_is_a_multiple_of_what_is_expected() -> None:
    assert hold_ns(0) == HOLD_NS_UNPROVEN
    assert hold_ns(1) == HOLD_NS_MIN
    assert hold_ns(50 * MS) == HOLD_FACTOR * 50 * MS


def test_what_waits_for_a_slot_does_not_keep_other_sequences_until_triton_ends_them() -> None:
    assert hold_ns(0, 600 * MS) == 300 * MS
    assert hold_ns(200 * MS, 600 * MS) == 300 * MS
    assert hold_ns(10 * MS, 600 * MS) == HOLD_FACTOR * 10 * MS


@virtual
async def test_a_hold_ends_with_the_answer_or_at_its_bound(loop: VirtualLoop) -> None:
    answered: asyncio.Future[bool] = loop.create_future()
    assert await hold(answered, 10 * MS) is None
    assert loop.now_ns() == pytest.approx(HOLD_FACTOR * 10 * MS, abs=10)
    answered.set_result(True)
    assert await hold(answered, 10 * MS) is True


def test_only_a_call_of_a_sequence_has_a_place_to_keep() -> None:
    assert sequence_of(call(), ECHO) is None
    assert sequence_of(call(parameters={"sequence_id": 0}), ECHO) is None
    assert sequence_of(call(parameters={"other": 7}), ECHO) is None
    assert sequence_of(call(parameters={"sequence_id": 7}), ECHO) is not None
    unread = sequence_of(call(lone_reason="json-tensors"), SEQUENCE)
    assert unread is not None
    assert unread == sequence_of(call(lone_reason="typed-contents"), SEQUENCE)
    keys = {sequence_of(call(parameters={"sequence_id": it}), SEQUENCE) for it in (1, "1", 2)}
    assert len(keys | {unread}) == 4


class Line:
    """Sequences and what they let in. told: how each call ended; left: those cancelled inside."""

    def __init__(self) -> None:
        self.held = Held()
        self.sequences = Sequences(self.held)
        self.inside: dict[str, Done] = {}
        self.told: dict[str, str] = {}
        self.left: list[str] = []

    def send(self, name: str, *, key: str = "s", at_once: bool = False) -> Cancel:
        def begin(done: Done) -> Cancel:
            if at_once:
                done(OK)
            else:
                self.inside[name] = done
            return lambda: self.left.append(name)

        def done(outcome: Answer | TritonschedError) -> None:
            self.told[name] = type(outcome).__name__

        return self.sequences.submit(key, 10, begin, done)

    def answer(self, name: str) -> None:
        self.inside.pop(name)(OK)


@virtual
async def test_a_call_is_let_in_when_the_one_before_it_is_answered(loop: VirtualLoop) -> None:
    line = Line()
    for name in "abc":
        line.send(name)
    line.send("x", key="other")
    assert (set(line.inside), line.held.size_bytes) == ({"a", "x"}, 20)
    for name, rest in (("a", {"b", "x"}), ("b", {"c", "x"}), ("c", {"x"})):
        line.answer(name)
        await loop.pause(1)
        assert set(line.inside) == rest
    assert line.told == dict.fromkeys("abc", "GrpcReply")
    assert (line.held.calls, line.held.size_bytes) == (0, 0)
    line.send("d")
    assert "d" in line.inside


@virtual
async def test_who_leaves_makes_room_wherever_it_stands(loop: VirtualLoop) -> None:
    """And leaving twice, or after the answer, is nothing."""
    line = Line()
    cancels = {name: line.send(name) for name in "abcd"}
    cancels["b"]()
    cancels["a"]()
    await loop.pause(1)
    assert (line.left, list(line.inside)) == (["a"], ["a", "c"])
    line.answer("c")
    for cancel in cancels.values():
        cancel()
        cancel()
    await loop.pause(1)
    assert (line.left, line.told) == (["a"], {"c": "GrpcReply"})
    assert "d" not in line.inside
    assert line.held.calls == 0
    line.send("e")
    assert "e" in line.inside


@virtual
async def test_a_line_has_a_bound_and_a_thousand_ended_at_once_are_no_recursion(
    loop: VirtualLoop,
) -> None:
    line = Line()
    line.send("first")
    for number in range(streaming.WAITING_MAX):
        line.send(f"{number}", at_once=True)
    cancel = line.send("one more")
    assert line.told == {"one more": QueueFull.__name__}
    cancel()
    line.answer("first")
    for _ in range(streaming.WAITING_MAX + 1):
        await loop.pause(1)
    assert len(line.told) == streaming.WAITING_MAX + 2
    assert line.held.calls == 0
