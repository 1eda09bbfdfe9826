"""The live driver, one batch at a time: each member is answered exactly once, whatever comes."""

import asyncio

import pytest

from tests.helpers import MS
from tests.unit.proxy.calls import tensor
from tests.unit.proxy.scene import DEVICE, EXEC_NS, Scene, data, ends, filled, virtual
from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched import errors
from tritonsched.backend.batch_call import BatchCall
from tritonsched.backend.scripted import Step, fail, hang, lose, malformed, ok
from tritonsched.proxy.streaming import HOLD_FACTOR
from tritonsched.tensors import Answer, GrpcReply, HttpReply, InferCall, Tensor, Wire

# -- one batch --------------------------------------------------------------------------------


@virtual
async def test_clients_of_one_moment_share_a_batch_and_each_gets_its_own_rows(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop)
    tasks = [scene.send(filled(1)), scene.send(filled(2, rows=3)), scene.send(filled(3))]
    assert [data(answer) for answer in await ends(*tasks)] == [b"\1" * 2, b"\2" * 6, b"\3" * 2]
    (batch,) = scene.backend.batches
    assert batch.rows == 5
    assert scene.backend.unreleased == 0
    assert scene.outcomes() == {"served": 3}
    assert scene.replies == [0, 0, 0]
    assert scene.sends == [0]
    assert scene.log == [(0, "dispatch")]


@virtual
async def test_what_was_asked_to_go_alone_goes_as_it_came(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    first, second = scene.send(lone="decoupled"), scene.send(lone="decoupled")
    assert await ends(first, second) == [GrpcReply("OK", "", b"")] * 2
    assert [made.raw for made in scene.backend.lone] == [b"original"] * 2
    assert scene.backend.batches == []


def in_sequence(
    scene: Scene, *, apart: bool = False, **parameters: int | bool
) -> "asyncio.Task[Answer]":
    return scene.send(lone="sequence", in_sequence=True, apart=apart, parameters=parameters)


@virtual
async def test_sequences_have_the_device_together_and_each_its_own_answer(
    loop: VirtualLoop,
) -> None:
    """Triton merges them itself; until the last of them is back nobody else has the device."""
    scene = Scene(loop, ok(2 * MS), fail(3 * MS), lose(4 * MS), ok(EXEC_NS))
    tasks = [in_sequence(scene, apart=True, sequence_id=n) for n in (1, 2, 3, 4)]
    ended: list[tuple[int, int]] = []
    for task in tasks:
        task.add_done_callback(lambda done: ended.append((tasks.index(done) + 1, loop.now_ns())))
    other = scene.send(filled(1))
    first, second, third, last = await ends(*tasks)
    assert [made.parameters["sequence_id"] for made in scene.backend.lone] == [1, 2, 3, 4]
    assert ended == [(1, 2 * MS), (2, 3 * MS), (3, 4 * MS), (4, EXEC_NS)]
    assert (first.code, second.code, last.code) == ("OK", "INTERNAL", "OK")
    assert isinstance(third, errors.TritonUnavailable)
    assert scene.lost == [""]
    await other
    assert loop.now_ns() == 2 * EXEC_NS
    assert scene.log == [(0, "dispatch"), (EXEC_NS, "dispatch")]
    assert scene.outcomes() == {"served": 3, "failed": 2}


@virtual
async def test_a_mistake_of_ours_with_one_sequence_is_not_the_others(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    forward = scene.backend.forward

    async def broken(made: InferCall) -> Answer:
        if made.parameters["sequence_id"] == 1:
            raise ZeroDivisionError
        return await forward(made)

    scene.backend.forward = broken  # type: ignore[method-assign, assignment]
    first, second = await ends(*[in_sequence(scene, apart=True, sequence_id=n) for n in (1, 2)])
    assert "internal error" in str(first)
    assert second.code == "OK"
    assert scene.outcomes() == {"served": 1, "failed": 1}


@virtual
async def test_a_model_that_changed_meanwhile_is_tritons_to_word_for_sequences(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop)
    scene.driver.is_current = lambda _: False
    tasks = [in_sequence(scene, apart=True, sequence_id=n) for n in (1, 2)]
    assert [answer.code for answer in await ends(*tasks)] == ["OK", "OK"]
    assert loop.now_ns() == EXEC_NS  # together all the same


@virtual
async def test_sequences_that_wait_in_triton_let_another_go_on(loop: VirtualLoop) -> None:
    """Triton has no slots for them before the other has ended. They teach nothing of the device."""
    scene = Scene(loop, hang(), hang())  # one running, and one sent ahead when that should end
    waiting = [in_sequence(scene, sequence_id=n) for n in (1, 2)]
    await scene.settle()
    other = in_sequence(scene, sequence_id=3)
    await loop.until(HOLD_FACTOR * EXEC_NS - 1)
    assert len(scene.backend.lone) == 2
    await other
    assert loop.now_ns() == (HOLD_FACTOR + 2) * EXEC_NS  # the second's hold, and its own time
    scene.backend.resume()
    await ends(*waiting)
    assert scene.outcomes() == {"served": 3}
    assert scene.scheduler._profiles["echo", DEVICE].exec_ns(1) == EXEC_NS


@virtual
async def test_a_start_behind_a_start_that_waits_holds_nobody_up(loop: VirtualLoop) -> None:
    """However many of them there are; they come in their order."""
    scene = Scene(loop, *[hang() for _ in range(50)])
    starts = [in_sequence(scene, sequence_id=n, sequence_start=True) for n in range(50)]
    await loop.until(HOLD_FACTOR * EXEC_NS + MS)
    await in_sequence(scene, sequence_id=99)
    assert [made.parameters["sequence_id"] for made in scene.backend.lone] == [*range(50), 99]
    assert loop.now_ns() <= (HOLD_FACTOR + 2) * EXEC_NS  # the second start's hold, and its own time
    scene.backend.resume()
    await ends(*starts)
    assert scene.outcomes() == {"served": 51}


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (HttpReply(200, "OK", (), b""), "served"),
        (HttpReply(400, "Bad Request", (), b""), "failed"),
        (GrpcReply("OK", "", b""), "served"),
        (GrpcReply("INVALID_ARGUMENT", "no", b""), "failed"),
    ],
)
def test_tritons_own_error_is_an_answer_that_teaches_nothing(
    reply: HttpReply | GrpcReply, outcome: str
) -> None:
    """The client gets it; the books say that the model was not executed."""

    async def main(loop: VirtualLoop) -> None:
        scene = Scene(loop, reply=lambda _: reply)
        wire = Wire.HTTP if isinstance(reply, HttpReply) else Wire.GRPC
        assert await ends(scene.send(lone="x", wire=wire)) == [reply]
        assert scene.outcomes() == {outcome: 1}

    run_virtual(main)


@virtual
async def test_an_answer_says_why_it_came_when_it_did(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    first = scene.send()
    await loop.until(1 * MS)
    second = scene.send(tensor(2), explain=True, deadline=50 * MS, clipped=True)
    third = scene.send()
    answers = await ends(first, second, third)
    assert [answer.explain is None for answer in answers] == [True, False, True]
    told = answers[1].explain
    assert (told.queue_ns, told.batch_rows, told.batch_requests) == (4 * MS, 3, 2)
    assert (told.variant, told.slack_ns, told.lone, told.clipped) == ("echo", 40 * MS, "", True)
    alone = await scene.driver.infer(scene.job(lone="no-batching", explain=True))
    assert alone.explain is not None
    assert (alone.explain.lone, alone.explain.slack_ns) == ("no-batching", None)
    assert alone.explain.clipped is False


# -- a merged batch that fails ----------------------------------------------------------------


@pytest.mark.parametrize("first", [fail(), malformed()], ids=["failed", "malformed"])
def test_a_failed_merge_is_taken_apart_and_each_member_tried_alone_once(first: Step) -> None:
    """The bad one gets Triton's own words, the others their answers."""

    async def main(loop: VirtualLoop) -> None:
        scene = Scene(loop, first, ok(), fail(), ok())
        tasks = [scene.send(id=name) for name in "abc"]
        good, bad, also_good = await ends(*tasks)
        assert good == also_good == GrpcReply("OK", "", b"")
        assert bad == GrpcReply("INTERNAL", "model 'echo' failed, as the script says", b"")
        assert [made.id for made in scene.backend.lone] == ["a", "b", "c"]
        assert [made.rows for made in scene.backend.batches] == [3]
        ((model, text),) = scene.taken_apart
        assert (model, "as the script says" in text) == ("echo", True)
        assert scene.outcomes() == {"served": 2, "failed": 1}
        assert scene.ledger.submitted.total() == 3

    run_virtual(main)


def test_a_failed_merge_is_not_repeated_if_the_operator_forbids_it() -> None:
    """Its members hear the batch's error; what may have been executed is not executed again."""

    async def main(loop: VirtualLoop) -> None:
        scene = Scene(loop, fail(), resend_failed=False)
        first, second = await ends(scene.send(id="a"), scene.send(id="b"))
        assert isinstance(first, errors.BackendError)
        assert str(first) == str(second)
        assert (scene.backend.lone, scene.taken_apart) == ([], [])
        assert scene.outcomes() == {"failed": 2}

    run_virtual(main)


@virtual
async def test_an_answer_with_wrong_rows_is_taken_apart_and_its_memory_given_back(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop, compute=lambda _: (filled(9, 1, "OUTPUT"),))
    answers = await ends(scene.send(), scene.send())
    assert answers == [GrpcReply("OK", "", b"")] * 2
    assert scene.backend.unreleased == 0
    assert len(scene.taken_apart) == 1


@virtual
async def test_a_second_try_says_so_in_its_explanation(loop: VirtualLoop) -> None:
    scene = Scene(loop, fail())
    answers = await ends(scene.send(explain=True), scene.send())
    assert answers[0].explain.lone == "merge-failed"
    assert answers[0].explain.batch_requests == 1


@virtual
async def test_a_batch_of_one_that_fails_is_tried_alone_too(loop: VirtualLoop) -> None:
    """Triton itself words the error: only its answer to the client's own bytes is."""
    scene = Scene(loop, fail(), fail())
    assert [answer.code for answer in await ends(scene.send())] == ["INTERNAL"]
    assert len(scene.backend.lone) == 1


@virtual
async def test_a_member_whose_client_left_is_not_tried_again(loop: VirtualLoop) -> None:
    scene = Scene(loop, fail(EXEC_NS))
    leaver, stayer = scene.send(id="leaver"), scene.send(id="stayer")
    await scene.settle()
    leaver.cancel()
    assert await stayer == GrpcReply("OK", "", b"")
    assert [made.id for made in scene.backend.lone] == ["stayer"]
    assert scene.outcomes() == {"cancelled": 1, "served": 1}


@virtual
async def test_a_broken_connection_fails_all_members_and_is_told(loop: VirtualLoop) -> None:
    """They are not tried again: the batch may have been executed."""
    scene = Scene(loop, lose())
    first, second = await ends(scene.send(), scene.send())
    assert isinstance(first, errors.TritonUnavailable)
    assert isinstance(second, errors.TritonUnavailable)
    assert (scene.lost, scene.backend.lone, scene.taken_apart) == ([""], [], [])
    assert scene.outcomes() == {"failed": 2}
    assert data(await scene.driver.infer(scene.job(filled(4)))) == b"\4" * 2


@virtual
async def test_a_fault_of_ours_is_told_to_all_members_and_the_next_request_is_served(
    loop: VirtualLoop,
) -> None:
    faults = iter([ValueError("never seen before")])

    def compute(made: BatchCall) -> tuple[Tensor, ...]:
        for fault in faults:
            raise fault
        return (filled(5, made.rows, "OUTPUT"),)

    scene = Scene(loop, compute=compute)
    for error in await ends(scene.send(), scene.send()):
        assert type(error) is errors.TritonschedError
        assert error.reason == "internal"
        assert "never seen before" in str(error)
    assert data(await scene.driver.infer(scene.job())) == b"\5" * 2
    assert scene.outcomes() == {"failed": 2, "served": 1}
