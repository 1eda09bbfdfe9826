"""The live driver's queue: who leaves, who is refused and how it is told, when it wakes up."""

import asyncio

import pytest

from tests.helpers import EXACT, MS, S, request
from tests.unit.proxy.calls import ECHO, call
from tests.unit.proxy.scene import EXEC_NS, Scene, data, ends, filled, virtual
from tests.virtual_loop import VirtualLoop, run_virtual
from tritonsched import errors
from tritonsched.backend.batch_call import BatchCall
from tritonsched.backend.scripted import ScriptedBackend, fail, hang, lose, ok
from tritonsched.core.policies import POLICIES
from tritonsched.core.request import RejectReason
from tritonsched.core.scheduler import Scheduler
from tritonsched.core.state import AWAY_RETRY_NS
from tritonsched.core.tuning import Tuning
from tritonsched.core.variant import ServerState, Variant
from tritonsched.proxy.driver import Driver
from tritonsched.proxy.job import Job
from tritonsched.proxy.refusal import refusal_error
from tritonsched.proxy.timer import LoopTimer
from tritonsched.tensors import GrpcReply, Tensor

# -- clients that leave -----------------------------------------------------------------------


@virtual
async def test_who_leaves_the_queue_is_never_executed(loop: VirtualLoop) -> None:
    scene = Scene(loop, ok(EXEC_NS))
    first = scene.send(filled(1))
    await scene.settle()
    leaver, stayer = scene.send(filled(2)), scene.send(filled(3))
    await scene.settle()
    leaver.cancel()
    await asyncio.wait({leaver})
    assert leaver.cancelled()
    assert [data(answer) for answer in await ends(first, stayer)] == [b"\1" * 2, b"\3" * 2]
    assert [made.rows for made in scene.backend.batches] == [1, 1]
    assert scene.outcomes() == {"cancelled": 1, "served": 2}


@virtual
async def test_who_leaves_a_batch_on_its_way_does_not_disturb_the_others(
    loop: VirtualLoop,
) -> None:
    """The call to Triton goes on: Triton can crash when one is cancelled."""
    scene = Scene(loop, hang())
    leaver, stayer = scene.send(filled(1)), scene.send(filled(2))
    await scene.settle()
    leaver.cancel()
    await scene.settle()
    assert leaver.cancelled()
    scene.backend.resume()
    assert data(await stayer) == b"\2" * 2
    assert [made.rows for made in scene.backend.batches] == [2]
    assert scene.outcomes() == {"cancelled": 1, "served": 1}


@pytest.mark.parametrize("at_once", [True, False], ids=["just before", "just after"])
def test_who_leaves_at_the_moment_of_its_answer_leaves_no_trace(at_once: bool) -> None:
    """Between Triton's answer and the client's turn to read it; the other member is served."""

    async def main(loop: VirtualLoop) -> None:
        def leave_while_answered(made: BatchCall) -> tuple[Tensor, ...]:
            if at_once:
                leaver.cancel()
            else:
                loop.call_soon(leaver.cancel)
            return (filled(6, made.rows, "OUTPUT"),)

        scene = Scene(loop, compute=leave_while_answered)
        leaver, stayer = scene.send(), scene.send()
        assert data(await stayer) == b"\6" * 2
        assert leaver.cancelled()
        assert scene.ledger.outcomes.total() == 2
        assert data(await scene.driver.infer(scene.job())) == b"\6" * 2

    run_virtual(main)


@virtual
async def test_drained_waits_for_the_batches_of_clients_that_left(loop: VirtualLoop) -> None:
    scene = Scene(loop, hang())
    task = scene.send()
    await scene.settle()
    task.cancel()
    drained = asyncio.ensure_future(scene.driver.drained())
    await scene.settle()
    assert task.cancelled()
    assert not drained.done()
    scene.backend.resume()
    await drained
    assert scene.outcomes() == {"cancelled": 1}


# -- refusals ---------------------------------------------------------------------------------

REFUSALS = {
    RejectReason.DEADLINE_UNREACHABLE: (
        errors.DeadlineUnreachable,
        "model 'echo': cannot be answered in the 7.5 ms left; allow more time",
        None,
    ),
    RejectReason.QUEUE_FULL: (
        errors.QueueFull,
        "model 'echo': its queue is full; try again later",
        3 * MS,
    ),
    RejectReason.TENANT_QUEUE_FULL: (
        errors.TenantQueueFull,
        "model 'echo': as many requests of tenant 'north' wait as may; try again later",
        3 * MS,
    ),
    RejectReason.TENANT_OVER_SHARE: (
        errors.TenantOverShare,
        "model 'echo': its queue is full, and tenant 'north' has its share; try again later",
        3 * MS,
    ),
    RejectReason.DRAINING: (
        errors.Draining,
        "the sidecar is shutting down; use another instance or try again later",
        3 * MS,
    ),
    RejectReason.TRITON_UNAVAILABLE: (
        errors.TritonUnavailable,
        "Triton is not answering; try again later",
        3 * MS,
    ),
}


@pytest.mark.parametrize("reason", RejectReason)
def test_a_refusal_says_what_and_what_to_do_and_when(reason: RejectReason) -> None:
    """The reason on the wire is the scheduler's own word."""
    kind, text, hint = REFUSALS[reason]
    asked = request(1, model="echo", deadline=17 * MS + MS // 2, tenant="north")
    error = refusal_error(asked, reason, hint, 10 * MS)
    assert (type(error), str(error), error.retry_after_ns) == (kind, text, hint)
    assert error.reason == reason.value


@virtual
async def test_a_hopeless_request_is_refused_at_once(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    await scene.driver.infer(scene.job())  # else it would be sent to measure
    now = loop.now_ns()
    (error,) = await ends(scene.send(deadline=now + EXEC_NS - 1))
    assert isinstance(error, errors.DeadlineUnreachable)
    assert scene.log == [(0, "dispatch"), (now, "reject")]
    assert len(scene.backend.batches) == 1
    assert scene.outcomes() == {"served": 1, "rejected": 1}


@virtual
async def test_over_the_bound_of_its_queue_a_request_is_told_when_to_come_back(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop, tuning=Tuning(rtt_ns=0, guard_ns=0, queue_requests_max=1))
    running = scene.send()
    await scene.settle()
    waiting, refused = scene.send(), scene.send()
    (error,) = await ends(refused)
    assert isinstance(error, errors.QueueFull)
    assert error.retry_after_ns == EXEC_NS
    assert all(map(data, await ends(running, waiting)))


@virtual
async def test_a_deadline_that_passes_before_the_turn_comes_is_told_as_expired(
    loop: VirtualLoop,
) -> None:
    """The loop was late: the timer fires long after the deadline."""
    scene = Scene(loop, ok(100 * MS), late_ns=50 * MS)
    running = scene.send()
    await scene.settle()
    (error,) = await ends(scene.send(deadline=12 * MS))
    assert isinstance(error, errors.DeadlineExpired)
    assert str(error) == "model 'echo': the deadline passed while the request was queued"
    assert data(await running)
    assert scene.outcomes() == {"expired": 1, "served": 1}


@virtual
async def test_when_triton_goes_away_the_queue_is_refused_at_once(loop: VirtualLoop) -> None:
    scene = Scene(loop, hang())
    running = scene.send()
    await scene.settle()
    waiting = scene.send()
    await scene.settle()
    scene.driver.set_server(ServerState.AWAY)
    (error,) = await ends(waiting)
    assert isinstance(error, errors.TritonUnavailable)
    assert error.retry_after_ns == AWAY_RETRY_NS
    scene.backend.resume()
    assert data(await running)


@virtual
async def test_a_second_try_is_refused_when_triton_has_gone(loop: VirtualLoop) -> None:
    """Each member is answered, even when its batch failed and Triton left at once."""
    scene = Scene(loop, hang(fail()))
    tasks = scene.send(), scene.send()
    await scene.settle()
    scene.driver.set_server(ServerState.AWAY)
    scene.backend.resume()
    for error in await ends(*tasks):
        assert isinstance(error, errors.TritonUnavailable)
    assert scene.outcomes() == {"rejected": 2}


@virtual
async def test_what_was_queued_is_served_while_draining_and_nothing_new(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop)
    running = scene.send()
    await scene.settle()
    waiting = scene.send()
    await scene.settle()
    scene.driver.set_server(ServerState.DRAINING)
    (error,) = await ends(scene.send())
    assert isinstance(error, errors.Draining)
    assert all(map(data, await ends(running, waiting)))


# -- the timer --------------------------------------------------------------------------------


@virtual
async def test_the_timer_is_armed_only_when_the_wake_up_changes(loop: VirtualLoop) -> None:
    """Of four requests that wait for the same batch, the first arms; the last to leave disarms."""
    scene = Scene(loop)
    running, waiting = scene.send(), []
    for _ in range(4):
        await scene.settle()
        waiting.append(scene.send())
    await scene.settle()
    assert scene.timer.arms == [EXEC_NS]
    for task in waiting:
        task.cancel()
        await scene.settle()
    assert scene.timer.arms == [EXEC_NS, None]
    assert data(await running)


@virtual
async def test_a_timer_that_fires_early_is_armed_again_for_the_same_time(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop)
    tasks = [scene.send()]
    await scene.settle()
    tasks.append(scene.send())
    await scene.settle()
    scene.timer.fired()
    assert scene.timer.arms == [EXEC_NS, EXEC_NS]
    assert all(map(data, await ends(*tasks)))


@virtual
async def test_a_late_timer_counts_as_lag_of_the_batch_it_sends_and_of_no_other(
    loop: VirtualLoop,
) -> None:
    scene = Scene(loop, ok(100 * MS), late_ns=2 * MS)
    running = scene.send()
    await scene.settle()
    waiting = scene.send()
    await ends(running, waiting)
    await scene.driver.infer(scene.job())
    assert scene.sends == [0, 2 * MS, 0]


@virtual
async def test_a_retune_may_make_the_next_batch_due(loop: VirtualLoop) -> None:
    scene = Scene(loop, hang(), ok())
    running = scene.send()
    await scene.settle()
    waiting = scene.send()
    await scene.settle()
    scene.driver.retune(Tuning(rtt_ns=0, guard_ns=EXEC_NS))
    assert data(await waiting)
    assert loop.now_ns() < EXEC_NS
    scene.backend.resume()
    assert data(await running)


@virtual
async def test_a_closed_driver_has_no_timer_left(loop: VirtualLoop) -> None:
    scene = Scene(loop, hang())
    running = scene.send()
    await scene.settle()
    waiting = scene.send()
    await scene.settle()
    scene.driver.close()
    await loop.until(S)
    assert scene.log == [(0, "dispatch")]
    scene.backend.resume()
    assert all(map(data, await ends(running, waiting)))


@virtual
async def test_listeners_are_optional(loop: VirtualLoop) -> None:
    """A driver without any serves, takes apart and loses just the same."""
    backend = ScriptedBackend([fail(), ok(), lose()], models={"echo": ECHO}, sleeper=loop.pause)
    driver = Driver(
        Scheduler(POLICIES["lite"](), tuning=EXACT),
        backend,
        clock=loop.now_ns,
        make_timer=lambda fired: LoopTimer(loop, fired),
    )
    driver.set_variant(Variant("echo", 8, ECHO.devices))
    first = Job(call(), ECHO, request(1, model="echo"))
    assert await driver.infer(first) == GrpcReply("OK", "", b"")
    with pytest.raises(errors.TritonUnavailable):
        await driver.infer(Job(call(), ECHO, request(2, model="echo")))
    await driver.drained()


@virtual
async def test_a_clock_that_moves_while_decisions_are_carried_out_is_no_fault(
    loop: VirtualLoop,
) -> None:
    """A batch of a model that was loaded anew goes back to the queue while the pump still runs."""
    ticks, standing = iter(range(1_000_000)), loop.now_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "now_ns", lambda: standing() + next(ticks))
        scene = Scene(loop)
        current = iter([False])
        scene.driver.is_current = lambda _: next(current, True)
        answers = await ends(scene.send(filled(1)), scene.send(filled(2)))
    assert [type(answer) for answer in answers] == [GrpcReply, GrpcReply]  # each alone
