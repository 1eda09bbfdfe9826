"""One gRPC stream, message by message, on virtual time: client, scheduler and Triton are played by
the test. Real ones: test_grpc_server.py and the integration tests.
"""

import grpc

from tests.helpers import MS
from tests.unit.frontend.stream_stage import EOF, NO, Stage, answer, broken, sent
from tests.unit.proxy.scene import virtual
from tests.virtual_loop import VirtualLoop
from tritonsched.frontend import grpc_stream
from tritonsched.frontend.grpc_stream import READ_MAX
from tritonsched.proxy.streaming import HOLD_NS_UNPROVEN


@virtual
async def test_a_message_waits_for_its_turn_and_the_next_for_it(loop: VirtualLoop) -> None:
    stage = Stage(loop)
    stage.client.say("a", "b")
    await stage.settle()
    assert (list(stage.turns.waiting), stage.triton.seen) == (["a"], [])
    stage.turns.give("a")
    await stage.settle()
    assert (list(stage.turns.waiting), stage.triton.seen) == (["b"], [sent("a")])
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
    assert stage.triton.seen == [sent(name) for name in "abc"]
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
    assert (stage.triton.seen, stage.triton.half_closed) == ([sent("a")], True)


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
